package blockdev

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/ioring"
	"golang.org/x/sys/unix"
)

// Format makes a device out of the file or block device at path. A missing file
// is created. A file is written in full, with zeros: every byte that is merely
// allocated would cost a journal entry of the file system with its first
// durable write.
//
// What looks used is refused unless Force is set: a superblock of ours, or
// anything but zeros in the first MiB. So is a file that its file system has no
// room for. The first thing written are zeros over an old superblock and the
// last thing is the new one, so that a format that was cut in the middle is
// never taken for a device; a file that Format created and could not finish is
// removed.
func Format(ctx context.Context, path string, o FormatOptions) (Superblock, error) {
	sb, err := formatPath(ctx, path, o)
	return sb, wrap(path, err)
}

func formatPath(ctx context.Context, path string, o FormatOptions) (sb Superblock, err error) {
	created, err := create(path, o)
	if err != nil {
		return sb, err
	}
	if created {
		defer func() {
			if err != nil {
				err = errors.Join(err, unix.Unlink(path))
			}
		}()
	}
	f, err := openFile(path, false, time.Second)
	if err != nil {
		return sb, err
	}
	defer func() { err = errors.Join(err, f.close()) }()
	if err := f.prepare(path, &o); err != nil {
		return sb, err
	}
	e, _, err := ioring.Open(f.fd, ioring.Options{Engine: ioring.Sync, Workers: 4})
	if err != nil {
		return sb, err
	}
	defer e.Close()
	w, err := newFormatter(e, path, f.size, f.blockSize, o)
	if err != nil {
		return sb, err
	}
	defer w.close()
	w.fill = f.regular()
	if sb, err = w.run(ctx); err != nil {
		return sb, err
	}
	return sb, f.persist(path)
}

// create creates a file that is missing.
func create(path string, o FormatOptions) (bool, error) {
	fd, err := unix.Open(path, unix.O_CREAT|unix.O_EXCL|unix.O_RDWR|unix.O_CLOEXEC, 0o640)
	if errors.Is(err, unix.EEXIST) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	err = unix.Close(fd)
	if o.Size == 0 {
		err = errors.Join(fmt.Errorf("format: it does not exist, and no size was given to create it: %w", redoubt.ErrInvalid), unix.Unlink(path))
	}
	return err == nil, err
}

// prepare looks at what is there and brings a file to its size. It changes
// nothing that has content before it has decided that it may.
func (f *file) prepare(path string, o *FormatOptions) error {
	if !o.Force {
		if err := f.refuseUsed(); err != nil {
			return fmt.Errorf("format: %w", err)
		}
	}
	switch {
	case !f.regular() && o.Size != 0 && o.Size != f.size:
		return fmt.Errorf("format: size %d given, but the block device has %d: %w", o.Size, f.size, redoubt.ErrInvalid)
	case !f.regular():
		return nil
	case o.Size == 0:
		o.Size = f.size &^ (slotSize - 1)
	case o.Size < 0 || o.Size%slotSize != 0:
		return fmt.Errorf("format: size %d: want a multiple of %d: %w", o.Size, slotSize, redoubt.ErrInvalid)
	}
	if o.ExtentSize == 0 {
		o.ExtentSize = DefaultExtentSize
	}
	if _, _, err := geometry(o.Size, o.ExtentSize); err != nil {
		return fmt.Errorf("format: %w", err)
	}
	if err := f.room(path, o.Size); err != nil {
		return fmt.Errorf("format: %w", err)
	}
	return f.resize(o.Size)
}

// refuseUsed reads the beginning and looks for content.
func (f *file) refuseUsed() error {
	b, err := newScratch(usedProbe)
	if err != nil {
		return err
	}
	defer unix.Munmap(b)
	n := 0
	for n < len(b) {
		// A read of a file may end at its last byte, wherever that is; what
		// follows a read that ends unaligned is the end.
		m, err := unix.Pread(f.fd, b[n:], int64(n))
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return fmt.Errorf("looking whether it is in use: %w", err)
		}
		n += m
		if m == 0 || n%f.blockSize != 0 {
			break
		}
	}
	return refuseUsed(b[:n])
}

// room checks that the file system can hold a file of size bytes.
func (f *file) room(path string, size int64) error {
	var fs unix.Statfs_t
	if err := unix.Fstatfs(f.fd, &fs); err != nil {
		return err
	}
	has := f.st.Blocks * 512 // what the file has already
	free := int64(fs.Bavail) * fs.Bsize
	if missing := size - has - free; missing > 0 {
		return fmt.Errorf("needs %d bytes, its file system (%s) has %d free: %d are missing; free them, choose a smaller size or another place: %w",
			size, filepath.Dir(path), free, missing, redoubt.ErrFull)
	}
	return nil
}

// resize gives a file its size, and its space in as few pieces as possible. It
// is written in full afterwards, so where that is not possible it does not matter.
func (f *file) resize(size int64) error {
	if size != f.size {
		if err := uninterrupted(func() error { return unix.Ftruncate(f.fd, size) }); err != nil {
			return fmt.Errorf("format: setting the size to %d: %w", size, err)
		}
	}
	err := uninterrupted(func() error { return unix.Fallocate(f.fd, 0, 0, size) })
	if err != nil && !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.ENOSYS) {
		return fmt.Errorf("format: allocating %d bytes: %w", size, err)
	}
	f.size = size
	return nil
}

// persist makes a file and its name durable, metadata included.
func (f *file) persist(path string) error {
	if err := unix.Fsync(f.fd); err != nil {
		return fmt.Errorf("format: fsync: %w", err)
	}
	if !f.regular() {
		return nil
	}
	dir := filepath.Dir(path)
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("format: opening directory %s to sync it: %w", dir, err)
	}
	err = unix.Fsync(fd)
	if err != nil {
		err = fmt.Errorf("format: fsync of directory %s: %w", dir, err)
	}
	return errors.Join(err, unix.Close(fd))
}
