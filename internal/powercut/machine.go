package powercut

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"syscall"

	"github.com/redoubt-storage/redoubt/internal/powercut/guest"
)

// MachineOptions describe a virtual machine.
type MachineOptions struct {
	QEMU   string // the emulator; default qemu-system-x86_64
	Kernel string // its image, with NVMe and a serial console built in
	Initrd string // as WriteInitrd makes it

	// Accel is what runs the guest's instructions. Default "tcg,thread=multi", the
	// emulator itself: it works everywhere, in containers too, and a machine whose
	// /dev/kvm is there may still run no guest with it. "kvm" is faster.
	Accel string

	// MemoryMiB of the guest. Default 512.
	MemoryMiB int

	// LogicalBlock is the drives' logical block size, 512 or 4096. Default 512.
	LogicalBlock int

	// FUA offers QEMU forced writes beside flushes; it makes use of them for guests
	// whose drive has its cache off.
	FUA bool

	// WriteThrough turns the drives' caches off, so that the guest need not flush
	// and every write is forced.
	WriteThrough bool
}

// A Machine is a running virtual machine on a supply of power.
type Machine struct {
	supply   *Supply
	process  *exec.Cmd
	console  *tail
	messages chan guest.Message
	exited   chan struct{} // closed when QEMU has ended and been waited for
	dir      string
	tasks    sync.WaitGroup

	mu      sync.Mutex // guards what follows
	err     error      // the first thing that went wrong beside the guest's own words
	killed  bool
	line    net.Conn    // to the guest, once it is there
	closers []io.Closer // connections and listeners
}

// Boot starts a machine on the disks and hands the guest its configuration. What
// the guest says comes out of Messages; the caller must call Kill.
func Boot(ctx context.Context, o MachineOptions, s *Supply, disks []*Disk, c guest.Config) (*Machine, error) {
	dir, err := os.MkdirTemp("", "powercut")
	if err != nil {
		return nil, fmt.Errorf("powercut: %w", err)
	}
	m := &Machine{
		supply: s, dir: dir, console: &tail{limit: 64 << 10},
		messages: make(chan guest.Message, 64), exited: make(chan struct{}),
	}
	if err := m.boot(ctx, o, disks, c); err != nil {
		close(m.messages)
		return nil, errors.Join(err, m.Kill())
	}
	return m, nil
}

func (m *Machine) boot(ctx context.Context, o MachineOptions, disks []*Disk, c guest.Config) error {
	line, err := m.listen("line")
	if err != nil {
		close(m.exited)
		return err
	}
	for i, d := range disks {
		l, err := m.listen("drive" + strconv.Itoa(i))
		if err != nil {
			close(m.exited)
			return err
		}
		m.tasks.Go(func() { m.serve(l, &Export{Disk: d, FUA: o.FUA}) })
	}
	m.process = exec.CommandContext(ctx, cmp.Or(o.QEMU, "qemu-system-x86_64"), o.args(m.dir, len(disks))...)
	m.process.Stdout, m.process.Stderr = m.console, m.console
	// The guest must not outlive a rig that was killed; the signal is bound to the
	// thread that starts the process, which therefore waits for it too.
	m.process.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	m.tasks.Go(func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defer close(m.exited)
		err := m.process.Start()
		started <- err
		if err == nil {
			m.fail(m.process.Wait())
			line.Close()
		}
	})
	if err := <-started; err != nil {
		return fmt.Errorf("powercut: %w", err)
	}
	m.tasks.Go(func() { m.listenToGuest(line, c) })
	return nil
}

// cmdline is the kernel's. It must not test its timer: on a busy host an emulated
// one fails the test, and the kernel gives up before it has begun. Nor may it lose
// patience with a drive that such a host keeps waiting.
const cmdline = "console=ttyS0 quiet panic=-1 no_timer_check nvme_core.io_timeout=600 nvme_core.admin_timeout=600"

// args is QEMU's command line.
func (o MachineOptions) args(dir string, disks int) []string {
	accel := cmp.Or(o.Accel, "tcg,thread=multi")
	block := strconv.Itoa(cmp.Or(o.LogicalBlock, 512))
	cache := "on"
	if o.WriteThrough {
		cache = "off"
	}
	args := []string{
		"-accel", accel, "-cpu", "max", "-m", strconv.Itoa(cmp.Or(o.MemoryMiB, 512)) + "M", "-smp", "2",
		"-nodefaults", "-display", "none", "-no-reboot", "-net", "none",
		"-kernel", o.Kernel, "-initrd", o.Initrd, "-append", cmdline,
		"-serial", "stdio",
		"-chardev", "socket,id=line,path=" + filepath.Join(dir, "line"), "-serial", "chardev:line",
	}
	for i := range disks {
		n := strconv.Itoa(i)
		args = append(args,
			"-blockdev", "driver=nbd,node-name=nbd"+n+",server.type=unix,server.path="+filepath.Join(dir, "drive"+n),
			"-blockdev", "driver=raw,node-name=raw"+n+",file=nbd"+n,
			"-device", "nvme,serial="+guest.SerialPrefix+n+",drive=raw"+n+",write-cache="+cache+",logical_block_size="+block+",physical_block_size="+block)
	}
	return args
}

// listen opens a socket that QEMU will connect to.
func (m *Machine) listen(name string) (net.Listener, error) {
	l, err := net.Listen("unix", filepath.Join(m.dir, name))
	if err != nil {
		return nil, fmt.Errorf("powercut: %w", err)
	}
	m.own(l)
	return l, nil
}

// own closes c when the machine is killed, or now if it has been.
func (m *Machine) own(c io.Closer) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.killed {
		c.Close()
		return
	}
	m.closers = append(m.closers, c)
}

// fail notes the first thing that went wrong, unless we are bringing it about.
func (m *Machine) fail(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.err == nil && !m.killed {
		m.err = err
	}
}

func (m *Machine) serve(l net.Listener, e *Export) {
	conn, err := l.Accept()
	if err != nil {
		m.fail(err)
		return
	}
	m.own(conn)
	m.fail(e.Serve(conn))
}

// listenToGuest hands over the configuration and passes messages on until the line
// is closed.
func (m *Machine) listenToGuest(l net.Listener, c guest.Config) {
	defer close(m.messages)
	conn, err := l.Accept()
	if err != nil {
		m.fail(fmt.Errorf("powercut: the emulator ended before it had opened the line: %w", err))
		return
	}
	m.own(conn)
	m.mu.Lock()
	m.line = conn
	m.mu.Unlock()
	lines := bufio.NewScanner(conn)
	for lines.Scan() {
		msg, err := guest.ParseMessage(lines.Text())
		if err == nil && msg.Verb == guest.Ready {
			err = json.NewEncoder(conn).Encode(c)
		}
		if err != nil {
			m.fail(err)
			return
		}
		m.messages <- msg
	}
	m.fail(lines.Err())
}

// Messages is what the guest says. It is closed when the guest can say no more, and
// must be read until then.
func (m *Machine) Messages() <-chan guest.Message { return m.messages }

// Go lets the guest begin its load, after it has said that it has verified: from
// then on records of this life may be found, so the host must have noted where it
// begins.
func (m *Machine) Go() {
	m.mu.Lock()
	conn := m.line
	m.mu.Unlock()
	if _, err := io.WriteString(conn, guest.GoOn+"\n"); err != nil {
		m.fail(fmt.Errorf("powercut: %w", err))
	}
}

// Console gives the end of what the kernel and the workload have printed.
func (m *Machine) Console() string { return m.console.String() }

// Kill ends the machine, whatever it is doing, and takes its sockets away. It gives
// what went wrong before, if anything did.
func (m *Machine) Kill() error {
	m.supply.Cut()
	m.mu.Lock()
	m.killed = true
	closers := m.closers
	m.closers = nil
	m.mu.Unlock()
	if m.process != nil && m.process.Process != nil {
		m.process.Process.Kill() // it may have ended by itself
	}
	for _, c := range closers {
		c.Close()
	}
	<-m.exited
	for range m.messages {
		continue // whoever is passing one on must get to the end
	}
	m.tasks.Wait()
	return errors.Join(m.err, os.RemoveAll(m.dir))
}

// tail keeps the end of what is written to it.
type tail struct {
	limit int

	mu  sync.Mutex // guards what follows
	buf []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, p...)
	if over := len(t.buf) - t.limit; over > t.limit {
		t.buf = append(t.buf[:0], t.buf[over:]...)
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.buf)
}
