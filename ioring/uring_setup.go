//go:build giouring

package ioring

import (
	"fmt"
	"runtime"
	"strings"
	"unsafe"

	"github.com/pawelgaczynski/giouring"
	"golang.org/x/sys/unix"
)

const (
	maxRegistered = 1 << 30 // bytes of one registered buffer; the kernel takes no more
	maxBuffers    = 1 << 14 // registered buffers of a ring, likewise

	featSubmitStable = 1 << 2 // IORING_FEAT_SUBMIT_STABLE

	// Reads and writes of several pieces of one registered buffer, since Linux
	// 6.15. The library does not know their names yet.
	opReadvFixed  = 60
	opWritevFixed = 61
)

// A setup is one combination of ring flags, and its name for the log.
type setup struct {
	flags uint32
	name  string
}

// setups lists what Open tries, best first; EINVAL means that the kernel is too
// old for it. DEFER_TASKRUN lets completions wait until the thread asks for
// them, in place of interrupting it; SUBMIT_ALL keeps one bad entry from
// holding up those behind it.
func setups() []setup {
	const all = giouring.SetupSubmitAll
	return []setup{
		{giouring.SetupSingleIssuer | giouring.SetupDeferTaskrun | all, "SINGLE_ISSUER|DEFER_TASKRUN|SUBMIT_ALL"},
		{giouring.SetupCoopTaskrun | all, "COOP_TASKRUN|SUBMIT_ALL"},
		{all, "SUBMIT_ALL"},
		{0, "no flags"},
	}
}

// setupParams is struct io_uring_params. The library has its own but shows
// none of the fields, and we have to know two of them.
type setupParams struct {
	sqEntries, cqEntries, flags, sqThreadCPU, sqThreadIdle, features, wqFd uint32

	reserved [3]uint32
	offsets  [80]byte
}

// probe finds the first setup that the kernel takes, by making a ring and
// closing it, and returns how many completions such a ring holds.
func probe(depth int) (setup, uint32, error) {
	var errno unix.Errno
	for _, s := range setups() {
		p := setupParams{flags: s.flags}
		var fd uintptr
		fd, _, errno = unix.Syscall(unix.SYS_IO_URING_SETUP, uintptr(depth), uintptr(unsafe.Pointer(&p)), 0)
		if errno == unix.EINVAL {
			continue
		}
		if errno != 0 {
			break
		}
		if err := unix.Close(int(fd)); err != nil {
			return s, 0, fmt.Errorf("io_uring_setup: closing the probe: %w", err)
		}
		if p.features&featSubmitStable == 0 {
			return s, 0, fmt.Errorf("io_uring of this kernel reads vectors after submission; want Linux 5.5 or later")
		}
		return s, p.cqEntries, nil
	}
	return setup{}, 0, fmt.Errorf("io_uring_setup: %w%s", errno, hint(errno))
}

func hint(errno unix.Errno) string {
	switch errno {
	case unix.EPERM:
		return " (forbidden here: see sysctl kernel.io_uring_disabled, or the container's seccomp profile)"
	case unix.ENOSYS:
		return " (this kernel has none)"
	case unix.ENOMEM:
		return " (raise the limit on locked memory: ulimit -l)"
	}
	return ""
}

// A region is one registered buffer, by its addresses.
type region struct {
	start, end uintptr
}

// cutRegions cuts regions into registered buffers of at most most bytes. An op
// that crosses a cut goes unregistered, which is slower and no less right.
func cutRegions(regions [][]byte, most int) []region {
	var out []region
	for _, r := range regions {
		for len(r) > 0 {
			n := min(len(r), most)
			p := uintptr(unsafe.Pointer(unsafe.SliceData(r)))
			out = append(out, region{p, p + uintptr(n)})
			r = r[n:]
		}
	}
	return out
}

// A registrar is the ring's io_uring_register call; tests have their own.
type registrar func(opcode uint32, arg unsafe.Pointer, n uint32) unix.Errno

// registerRegions registers the buffers, and falls back to none if the kernel
// won't lock that much memory. It returns what is registered and says so.
func registerRegions(register registrar, regions []region) ([]region, string) {
	if len(regions) == 0 {
		return nil, "no registered buffers"
	}
	if len(regions) > maxBuffers {
		return nil, fmt.Sprintf("buffers unregistered: %d of them, the kernel takes %d", len(regions), maxBuffers)
	}
	vec := make([]iovec, len(regions))
	total := 0
	for i, r := range regions {
		vec[i] = iovec{base: r.start, size: r.end - r.start}
		total += int(r.end - r.start)
	}
	errno := register(giouring.RegisterBuffers, unsafe.Pointer(&vec[0]), uint32(len(vec)))
	runtime.KeepAlive(vec)
	if errno != 0 {
		return nil, fmt.Sprintf("buffers unregistered: %d bytes: %v%s", total, errno, hint(errno))
	}
	return regions, fmt.Sprintf("%d registered buffers of %d MiB in all", len(vec), total>>20)
}

// registerFiles registers fd as file 0 and the eventfd as file 1. The library's
// own RegisterFiles passes 64-bit integers where the kernel reads 32-bit ones.
func registerFiles(register registrar, fd, eventFD int) error {
	files := [2]int32{int32(fd), int32(eventFD)}
	errno := register(giouring.RegisterFiles, unsafe.Pointer(&files), uint32(len(files)))
	runtime.KeepAlive(&files)
	if errno != 0 {
		return fmt.Errorf("registering file descriptor %d: %w", fd, errno)
	}
	return nil
}

// setUp makes the ring on the calling thread, which owns it from then on, and
// says in words what it got.
func (e *uring) setUp(o Options) (string, error) {
	s, cq, err := probe(o.Depth)
	if err != nil {
		return "", err
	}
	ring := giouring.NewRing()
	if err := ring.QueueInit(uint32(o.Depth), s.flags); err != nil {
		return "", fmt.Errorf("io_uring_setup: %w", err)
	}
	e.ring = ring
	register := func(opcode uint32, arg unsafe.Pointer, n uint32) unix.Errno {
		_, errno := ring.Register(ring.RingFd(), opcode, arg, n)
		return errno
	}
	if err := registerFiles(register, e.fd, e.eventFD); err != nil {
		ring.QueueExit()
		return "", err
	}
	var buffers string
	e.regions, buffers = registerRegions(register, cutRegions(o.Regions, maxRegistered))
	e.vectorFixed = len(e.regions) > 0 && supports(register, opWritevFixed)
	e.slots = make([]*Op, cq-1) // one completion is left for the eventfd
	e.free = make([]uint32, 0, len(e.slots))
	for i := len(e.slots) - 1; i >= 0; i-- {
		e.free = append(e.free, uint32(i))
	}
	return strings.Join([]string{s.name, fmt.Sprintf("%d in flight", len(e.slots)), "registered file", buffers}, ", "), nil
}

// supports asks the kernel whether it knows an opcode.
func supports(register registrar, opcode uint8) bool {
	const known = 1 // IO_URING_OP_SUPPORTED
	var p giouring.Probe
	if errno := register(giouring.RegisterProbe, unsafe.Pointer(&p), uint32(len(p.Ops))); errno != 0 {
		return false
	}
	return opcode <= p.LastOp && p.Ops[opcode].Flags&known != 0
}

// tearDown gives everything back, on the ring's own thread and with nothing in
// flight. Files and buffers are unregistered by name because closing the ring
// lets go of them only some time later, and a lock on the device with them.
func (e *uring) tearDown() {
	fd := e.ring.RingFd()
	_, _ = e.ring.Register(fd, giouring.UnregisterFiles, nil, 0)
	if len(e.regions) > 0 {
		_, _ = e.ring.Register(fd, giouring.UnregisterBuffers, nil, 0)
	}
	e.ring.QueueExit()
	e.ring = nil
}
