//go:build linux

// Command init is process 1 of the power-cut machine's guest. It mounts what Go
// programs expect, brings the loopback interface up, waits for the drives, and runs
// the workload that the host names over the second serial port. It never ends of
// itself: the host takes the power away.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/redoubt-storage/redoubt/internal/powercut/guest"
)

const linePath = "/dev/ttyS1"

func main() {
	// The console is the last resort: without a line there is nobody to tell.
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "init:", err)
	}
	select {} // a process 1 that ends is a kernel panic
}

func run() error {
	if err := prepare(); err != nil {
		return err
	}
	port, err := openLine(linePath)
	if err != nil {
		return err
	}
	line := guest.NewLine(port)
	config, err := line.Open()
	if err != nil {
		return err
	}
	e := &guest.Env{
		Config: config,
		Open:   guest.OpenDevice,
		Logf:   func(format string, args ...any) { fmt.Fprintf(os.Stderr, "init: "+format+"\n", args...) },
	}
	if e.Paths, err = waitForDrives(config.Devices); err != nil {
		return errors.Join(err, line.Say(guest.Message{Verb: guest.Broken, Text: err.Error()}))
	}
	return errors.Join(guest.Run(context.Background(), line, e), line.Close())
}

// prepare makes the initial file system a place to live in.
func prepare() error {
	for _, m := range []struct{ source, target, kind string }{
		{"devtmpfs", "/dev", "devtmpfs"},
		{"proc", "/proc", "proc"},
		{"sysfs", "/sys", "sysfs"},
		{"tmpfs", "/tmp", "tmpfs"},
	} {
		if err := os.MkdirAll(m.target, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.source, m.target, m.kind, 0, ""); err != nil {
			return fmt.Errorf("mount %s: %w", m.target, err)
		}
	}
	return loopbackUp()
}

// loopbackUp is `ip link set lo up`.
func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("loopback: %w", err)
	}
	defer unix.Close(fd)
	r, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	r.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, r); err != nil {
		return fmt.Errorf("loopback: %w", err)
	}
	return nil
}

// openLine opens the serial port and turns off everything that a terminal does to
// bytes.
func openLine(path string) (*os.File, error) {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	t, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	t.Iflag, t.Oflag, t.Lflag = 0, 0, 0
	t.Cflag = unix.CS8 | unix.CREAD | unix.CLOCAL | unix.B115200
	t.Cc[unix.VMIN], t.Cc[unix.VTIME] = 1, 0
	if err := unix.IoctlSetTermios(fd, unix.TCSETS, t); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return os.NewFile(uintptr(fd), path), nil
}

// waitForDrives waits until the kernel has found drives 0 to n-1, and gives their
// paths. It goes by their serial numbers: the kernel names them in the order in
// which they happened to answer.
func waitForDrives(n int) ([]string, error) {
	deadline := time.Now().Add(30 * time.Second)
	paths := make([]string, n)
	for missing := n; ; {
		serials, err := filepath.Glob("/sys/block/nvme*n1/device/serial")
		if err != nil {
			return nil, err
		}
		for _, file := range serials {
			i, ok := driveNumber(file)
			path := "/dev/" + strings.Split(file, "/")[3]
			if _, err := os.Stat(path); ok && i < n && paths[i] == "" && err == nil {
				paths[i] = path
				missing--
			}
		}
		if missing == 0 {
			return paths, nil
		}
		if time.Now().After(deadline) {
			return nil, fmt.Errorf("waiting for %d drives: found %q", n, paths)
		}
		time.Sleep(5 * time.Millisecond) // nobody tells process 1 about new devices
	}
}

// driveNumber reads the number out of the serial that the host gave a drive.
func driveNumber(file string) (int, bool) {
	serial, err := os.ReadFile(file)
	if err != nil {
		return 0, false
	}
	digits, ok := strings.CutPrefix(strings.TrimSpace(string(serial)), guest.SerialPrefix)
	i, err := strconv.Atoi(digits)
	return i, ok && err == nil && i >= 0
}
