package blockdev

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/ioring"
	"golang.org/x/sys/unix"
)

const fileSize = 8 << 20

func fileOptions() FormatOptions {
	o := smallOptions()
	o.Size = fileSize
	return o
}

func mustFormat(t *testing.T, path string, o FormatOptions) Superblock {
	t.Helper()
	sb, err := Format(context.Background(), path, o)
	if err != nil {
		t.Fatal(err)
	}
	return sb
}

// Format, open, use, close and open again, on a real file with O_DIRECT and on
// a loop device over it, with every engine inside this binary.
func TestRealDevices(t *testing.T) {
	for _, engine := range ioring.Available() {
		for _, durability := range []string{"auto", "flush"} {
			t.Run(engine+" "+durability+" file", func(t *testing.T) {
				path := filepath.Join(t.TempDir(), "device")
				mustFormat(t, path, fileOptions())
				useDevice(t, path, Options{IOEngine: engine, Durability: durability})
			})
			t.Run(engine+" "+durability+" loop", func(t *testing.T) {
				path := loopDevice(t)
				o := fileOptions()
				o.Size = 0
				mustFormat(t, path, o)
				useDevice(t, path, Options{IOEngine: engine, Durability: durability})
			})
		}
	}
}

// loopDevice attaches a loop device with direct I/O to a file of fileSize.
func loopDevice(t *testing.T) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("attaching a loop device takes root")
	}
	file := filepath.Join(t.TempDir(), "backing")
	if err := os.WriteFile(file, make([]byte, fileSize), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("losetup", "--direct-io=on", "--show", "-f", file).CombinedOutput()
	if err != nil {
		t.Skipf("no loop device here: %v: %s", err, out)
	}
	path := strings.TrimSpace(string(out))
	t.Cleanup(func() {
		if out, err := exec.Command("losetup", "-d", path).CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
	})
	return path
}

func useDevice(t *testing.T, path string, o Options) {
	open := func() *Device {
		t.Helper()
		d, err := Open(path, o)
		if err != nil {
			if o.IOEngine == ioring.Uring {
				t.Skipf("the ring is inside and this kernel refuses it: %v", err)
			}
			t.Fatal(err)
		}
		return d
	}
	d := open()
	if e, _ := d.Engine(); e != o.IOEngine {
		t.Errorf("engine %s, want %s", e, o.IOEngine)
	}
	if err := d.ClearClean(); err != nil {
		t.Fatal(err)
	}
	var extents []Extent
	for range 3 {
		extents = append(extents, mustAssign(t, d))
	}
	if err := d.Release(extents[1].Index); err != nil {
		t.Fatal(err)
	}
	buf, back := aligned(t, smallExtent, 'x'), aligned(t, smallExtent, 0)
	if err := d.WriteAt(buf, d.Offset(2)); err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	for i := range 8 {
		d.WriteDurable(&Write{Bufs: [][]byte{buf[:4096], buf[8192:12288]}, Off: d.Offset(0) + int64(i)*8192, Done: func(_ *Write, err error) { done <- err }})
	}
	for range 8 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	want := d.Extents()
	if err := d.MarkClean(99); err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	d = open()
	defer d.Close()
	if s := d.Super(); s.Clean != 99 || s.Path != path || !slices.Equal(d.Extents(), want) || len(d.Found()) != 0 {
		t.Errorf("came back as %+v, %v, %v", s, d.Extents(), d.Found())
	}
	if err := d.ReadAt(back, d.Offset(2)); err != nil || string(back) != string(buf) {
		t.Errorf("read back other bytes: %v", err)
	}
	if found, err := d.CheckTable(); err != nil || len(found) != 0 {
		t.Errorf("check: %v, %v", found, err)
	}
	name, why := d.Durability()
	if o.Durability == "auto" && name != "fua" || why == "" {
		t.Errorf("durability %s (%s)", name, why)
	}
}

// A file is written in full: every byte allocated, none of it merely reserved.
func TestFormatWritesTheWholeFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "device")
	var last, total int64
	o := fileOptions()
	o.Progress = func(done, of int64) {
		if done <= last || done > of {
			t.Errorf("progress from %d to %d of %d", last, done, of)
		}
		last, total = done, of
	}
	sb := mustFormat(t, path, o)
	if last != fileSize || total != fileSize {
		t.Errorf("progress ended at %d of %d", last, total)
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil || st.Size != fileSize || st.Blocks*512 < fileSize {
		t.Errorf("%v, %d bytes, %d of them allocated", err, st.Size, st.Blocks*512)
	}
	if sb.Path != path || sb.ExtentCount != 28 || sb.Generation != 2 {
		t.Errorf("%+v", sb)
	}
	// What was allocated and never written would show in the file's map.
	out, err := exec.Command("filefrag", "-v", path).CombinedOutput()
	if err != nil {
		t.Logf("no filefrag here, so the map of the file was not looked at: %v", err)
	}
	if strings.Contains(string(out), "unwritten") {
		t.Errorf("parts of the file are allocated and not written:\n%s", out)
	}
}

func TestFormatRefusesWhatLooksUsed(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "device")
	o := fileOptions()
	first := mustFormat(t, path, o)
	if _, err := Format(context.Background(), path, o); !errors.Is(err, redoubt.ErrExists) {
		t.Errorf("a device of ours: %v, want ErrExists", err)
	}
	o.Force, o.device = true, redoubt.DeviceID{}
	if again := mustFormat(t, path, o); again.Device == first.Device {
		t.Error("the new device has the old one's identity")
	}
	// Another size, with force: smaller and larger.
	for _, size := range []int64{4 << 20, 16 << 20} {
		o.Size = size
		mustFormat(t, path, o)
		d, err := Open(path, Options{})
		if err != nil {
			t.Fatal(err)
		}
		if d.Super().Size != size {
			t.Errorf("%d bytes, want %d", d.Super().Size, size)
		}
		d.Close()
	}
	// Somebody's file, even one of a few bytes, stays as it is.
	notes := filepath.Join(dir, "notes")
	for _, content := range []string{"x", strings.Repeat("\x00", 70000) + "y"} {
		if err := os.WriteFile(notes, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Format(context.Background(), notes, fileOptions()); !errors.Is(err, redoubt.ErrExists) {
			t.Errorf("a file of %d bytes: %v, want ErrExists", len(content), err)
		}
		if b, err := os.ReadFile(notes); err != nil || string(b) != content {
			t.Errorf("the file of %d bytes was changed: %v", len(content), err)
		}
	}
	// An empty file, and one of zeros, may be used; it keeps its size if none
	// is given.
	for _, size := range []int64{0, fileSize} {
		if err := os.WriteFile(notes, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(notes, fileSize); err != nil {
			t.Fatal(err)
		}
		o := smallOptions()
		o.Size = size
		if sb := mustFormat(t, notes, o); sb.Size != fileSize {
			t.Errorf("%d bytes", sb.Size)
		}
	}
}

func TestFormatRefusesWhatCannotWork(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "device")
	for what, test := range map[string]struct {
		o    FormatOptions
		path string
		want error
		says string
	}{
		"no size":          {FormatOptions{}, path, redoubt.ErrInvalid, "no size"},
		"odd size":         {FormatOptions{Size: fileSize + 1}, path, redoubt.ErrInvalid, "multiple"},
		"tiny":             {FormatOptions{Size: 1 << 20}, path, redoubt.ErrInvalid, "are needed"},
		"no room":          {FormatOptions{Size: 1 << 50, ExtentSize: MaxExtentSize}, path, redoubt.ErrInvalid, "larger extents"},
		"no space":         {FormatOptions{Size: 1 << 46, ExtentSize: MaxExtentSize}, path, redoubt.ErrFull, "are missing"},
		"a directory":      {fileOptions(), dir, redoubt.ErrInvalid, "neither a file"},
		"no such a folder": {fileOptions(), filepath.Join(dir, "no/device"), os.ErrNotExist, "no such file"},
		"nobody's":         {FormatOptions{Size: fileSize, ExtentSize: smallExtent}, path, redoubt.ErrInvalid, "cluster and node"},
	} {
		_, err := Format(context.Background(), test.path, test.o)
		if !errors.Is(err, test.want) || !strings.Contains(err.Error(), test.says) {
			t.Errorf("%s: %v", what, err)
		}
		if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: a file was left behind: %v", what, err)
			os.Remove(path)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	o := fileOptions()
	o.Progress = func(done, _ int64) {
		if done > fileSize/2 {
			cancel()
		}
	}
	if _, err := Format(ctx, path, o); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the cancelled format left a file behind: %v", err)
	}
}

// A file that existed stays when its format is cancelled, and is no device.
func TestCancelledFormatLeavesNoDevice(t *testing.T) {
	path := filepath.Join(t.TempDir(), "device")
	mustFormat(t, path, fileOptions())
	ctx, cancel := context.WithCancel(context.Background())
	o := fileOptions()
	o.Force = true
	o.Progress = func(int64, int64) { cancel() }
	if _, err := Format(ctx, path, o); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	if _, err := Open(path, Options{}); !errors.Is(err, redoubt.ErrForeign) {
		t.Errorf("%v, want ErrForeign", err)
	}
}

func TestLock(t *testing.T) {
	path := filepath.Join(t.TempDir(), "device")
	mustFormat(t, path, fileOptions())
	once := Options{LockWait: -1}
	d, err := Open(path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	_, again := Open(path, once)
	_, reader := Open(path, Options{LockWait: -1, ReadOnly: true})
	o := fileOptions()
	o.Force = true
	_, format := Format(context.Background(), path, o)
	for what, err := range map[string]error{"a second node": again, "a reader": reader, "a format": format} {
		if !errors.Is(err, redoubt.ErrBusy) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v, want ErrBusy", what, err)
		}
	}
	// Whoever waits gets it when it is free.
	waited := make(chan error)
	go func() {
		d, err := Open(path, Options{})
		if err == nil {
			err = d.Close()
		}
		waited <- err
	}()
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-waited; err != nil {
		t.Errorf("waiting for the lock: %v", err)
	}
	// Readers share it.
	for range 2 {
		r, err := Open(path, Options{LockWait: -1, ReadOnly: true})
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
	}
	if _, err := Open(path, once); !errors.Is(err, redoubt.ErrBusy) {
		t.Errorf("a node beside readers: %v, want ErrBusy", err)
	}
}

// Opening for reading only works on a file that may only be read, and opening at
// all changes nothing.
func TestOpenChangesNothing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "device")
	mustFormat(t, path, fileOptions())
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range []Options{{}, {ReadOnly: true}} {
		d, err := Open(path, o)
		if err != nil {
			t.Fatal(err)
		}
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
		after, err := os.ReadFile(path)
		if err != nil || string(before) != string(after) {
			t.Errorf("%+v changed the device: %v", o, err)
		}
	}
}

func TestTruncatedFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "device")
	mustFormat(t, path, fileOptions())
	for _, size := range []int64{fileSize - 4096, 4 << 20, 100000, 4096} {
		if err := os.Truncate(path, size); err != nil {
			t.Fatal(err)
		}
		_, err := Open(path, Options{})
		if !errors.Is(err, redoubt.ErrCorrupt) || !strings.Contains(err.Error(), fmt.Sprint(size)) || !strings.Contains(err.Error(), fmt.Sprint(fileSize)) {
			t.Errorf("cut to %d: %v", size, err)
		}
	}
	if err := os.Truncate(path, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(path, Options{}); err == nil {
		t.Error("opened an empty file")
	}
}
