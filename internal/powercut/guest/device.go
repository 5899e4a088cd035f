package guest

import (
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// device is a raw block device, opened past the page cache.
type device struct {
	f     *os.File
	size  int64
	block int
}

// OpenDevice opens a block device, or a file in the place of one.
func OpenDevice(path string) (Medium, error) {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("guest: open %s: %w", path, err)
	}
	d := &device{f: os.NewFile(uintptr(fd), path), block: 4096}
	if n, err := unix.IoctlGetInt(fd, unix.BLKSSZGET); err == nil {
		d.block = n // a file in place of a device keeps 4096
	}
	if d.size, err = unix.Seek(fd, 0, unix.SEEK_END); err != nil {
		d.f.Close()
		return nil, fmt.Errorf("guest: size of %s: %w", path, err)
	}
	return d, nil
}

func (d *device) ReadAt(p []byte, off int64) (int, error)  { return d.f.ReadAt(p, off) }
func (d *device) WriteAt(p []byte, off int64) (int, error) { return d.f.WriteAt(p, off) }
func (d *device) Sync() error                              { return unix.Fdatasync(int(d.f.Fd())) }
func (d *device) Size() int64                              { return d.size }
func (d *device) Block() int                               { return d.block }
func (d *device) Close() error                             { return d.f.Close() }

// aligned returns zeroed memory that O_DIRECT accepts, on a boundary of 4096.
func aligned(n int) []byte {
	const boundary = 4096
	p := make([]byte, n+boundary)
	skip := -uintptr(unsafe.Pointer(unsafe.SliceData(p))) % boundary
	return p[skip : int(skip)+n : int(skip)+n]
}
