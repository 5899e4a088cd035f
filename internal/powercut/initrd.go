package powercut

import (
	"bufio"
	"fmt"
	"io"
	"os"
)

// An InitrdFile is one file of the guest's initial file system.
type InitrdFile struct {
	Name string // below the root, without a slash before it
	Path string // on this machine
}

// WriteInitrd makes the guest's initial file system: the given executables, and a
// console for process 1 to complain on. It is a cpio archive in the "newc" format,
// not compressed, because an emulated processor unpacks slowly.
//
//	"070701", 13 fields of 8 hex digits, name, NUL, zeros to 4; bytes, zeros to 4
func WriteInitrd(path string, files []InitrdFile) error {
	f, err := os.Create(path)
	if err != nil {
		return fmt.Errorf("powercut: initrd: %w", err)
	}
	defer f.Close()
	w := &cpio{out: bufio.NewWriterSize(f, 1<<20)}
	w.header("dev", 0o040755, 0, 0, 0)
	w.header("dev/console", 0o020600, 5, 1, 0)
	for _, file := range files {
		if err := w.file(file); err != nil {
			return err
		}
	}
	w.header("TRAILER!!!", 0, 0, 0, 0)
	if err := w.out.Flush(); err != nil {
		return fmt.Errorf("powercut: initrd: %w", err)
	}
	return f.Close()
}

// cpio writes an archive; its first error sticks in out.
type cpio struct {
	out   *bufio.Writer
	inode int
	size  int64
}

func (c *cpio) file(file InitrdFile) error {
	f, err := os.Open(file.Path)
	if err != nil {
		return fmt.Errorf("powercut: initrd: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return fmt.Errorf("powercut: initrd: %w", err)
	}
	c.header(file.Name, 0o100755, 0, 0, info.Size())
	n, err := io.CopyN(c.out, f, info.Size())
	if err != nil {
		return fmt.Errorf("powercut: initrd: %s: %w", file.Name, err)
	}
	c.size += n
	c.write("") // fills up
	return nil
}

// header begins a member: its mode, for a device its numbers, and how many bytes
// follow.
func (c *cpio) header(name string, mode, major, minor int, size int64) {
	c.inode++
	c.write(fmt.Sprintf("070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
		c.inode, mode, 0, 0, 1, 0, size, 0, 0, major, minor, len(name)+1, 0, name))
}

// write writes s and zeros up to the next multiple of 4.
func (c *cpio) write(s string) {
	c.size += int64(len(s))
	c.out.WriteString(s)
	for ; c.size%4 != 0; c.size++ {
		c.out.WriteByte(0)
	}
}
