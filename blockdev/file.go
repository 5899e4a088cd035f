package blockdev

import (
	"errors"
	"fmt"
	"time"

	"github.com/redoubt-storage/redoubt"
	"golang.org/x/sys/unix"
)

// A file is an open and locked device or file. It holds a bare descriptor: an
// *os.File would be closed by the garbage collector while the engine uses it.
type file struct {
	fd        int
	st        unix.Stat_t
	size      int64 // bytes
	blockSize int   // what O_DIRECT asks for
}

// lockPoll is how long to wait between two tries for a lock.
const lockPoll = 20 * time.Millisecond

// openFile opens path with O_DIRECT and locks it: shared for reading only,
// else for itself, tried for as long as wait says.
func openFile(path string, readOnly bool, wait time.Duration) (*file, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return nil, err
	}
	flags, how := unix.O_RDWR|unix.O_DIRECT|unix.O_CLOEXEC, unix.LOCK_EX
	if readOnly {
		flags, how = unix.O_RDONLY|unix.O_DIRECT|unix.O_CLOEXEC, unix.LOCK_SH
	}
	switch kind := st.Mode & unix.S_IFMT; {
	case kind == unix.S_IFBLK && !readOnly:
		flags |= unix.O_EXCL // of a block device: refused while it is mounted
	case kind != unix.S_IFBLK && kind != unix.S_IFREG:
		return nil, fmt.Errorf("neither a file nor a block device: %w", redoubt.ErrInvalid)
	}
	fd, err := openLocked(path, flags, how, wait)
	if err != nil {
		return nil, err
	}
	f := &file{fd: fd}
	if err := f.measure(); err != nil {
		return nil, errors.Join(err, f.close())
	}
	return f, nil
}

func (f *file) close() error { return unix.Close(f.fd) }

func (f *file) regular() bool { return f.st.Mode&unix.S_IFMT == unix.S_IFREG }

// openLocked opens and locks, again and again while somebody else holds the
// device: after a process died, io_uring may hold its descriptors for a moment.
func openLocked(path string, flags, how int, wait time.Duration) (int, error) {
	deadline := time.Now().Add(wait)
	for {
		fd, err := unix.Open(path, flags, 0)
		if err == nil {
			err = lock(fd, how)
			if err == nil {
				return fd, nil
			}
			err = errors.Join(err, unix.Close(fd))
		}
		busy := errors.Is(err, unix.EBUSY) || errors.Is(err, unix.EWOULDBLOCK)
		switch {
		case err == unix.EINVAL:
			return 0, fmt.Errorf("opening with O_DIRECT, which this file system may lack: %w", err)
		case busy && !time.Now().Before(deadline):
			return 0, fmt.Errorf("in use by another process or mounted (waited %v); is a node running on it?: %w", max(0, wait), redoubt.ErrBusy)
		case !busy && !errors.Is(err, unix.EINTR):
			return 0, err
		}
		<-time.After(lockPoll)
	}
}

func lock(fd, how int) error {
	return uninterrupted(func() error { return unix.Flock(fd, how|unix.LOCK_NB) })
}

// uninterrupted makes a system call until a signal leaves it alone.
func uninterrupted(call func() error) error {
	for {
		if err := call(); err != unix.EINTR {
			return err
		}
	}
}

// measure finds size and logical block.
func (f *file) measure() error {
	if err := unix.Fstat(f.fd, &f.st); err != nil {
		return err
	}
	if f.regular() {
		f.size = f.st.Size
		f.blockSize = f.directAlign()
		return nil
	}
	size, err := unix.IoctlGetInt(f.fd, unix.BLKGETSIZE64)
	if err != nil {
		return fmt.Errorf("asking for the size: %w", err)
	}
	block, err := unix.IoctlGetUint32(f.fd, unix.BLKSSZGET)
	if err != nil {
		return fmt.Errorf("asking for the logical block size: %w", err)
	}
	f.size, f.blockSize = int64(size), int(block)
	return nil
}

// directAlign returns the alignment that O_DIRECT asks for on a regular file.
// Kernels before 6.1 don't tell; then a read does: one of 512 bytes that is not
// refused.
func (f *file) directAlign() int {
	var stx unix.Statx_t
	err := unix.Statx(f.fd, "", unix.AT_EMPTY_PATH, unix.STATX_DIOALIGN, &stx)
	if err == nil && stx.Mask&unix.STATX_DIOALIGN != 0 && stx.Dio_offset_align != 0 {
		return max(minBlockSize, int(stx.Dio_offset_align), int(stx.Dio_mem_align))
	}
	b, err := newScratch(maxBlockSize)
	if err != nil {
		return maxBlockSize
	}
	defer unix.Munmap(b)
	if _, err := unix.Pread(f.fd, b[minBlockSize:2*minBlockSize], minBlockSize); err != nil {
		return maxBlockSize
	}
	return minBlockSize
}
