package blockdev

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/redoubt-storage/redoubt"
	"golang.org/x/sys/unix"
)

// A mode is how writes become durable; see the package documentation.
type mode uint8

const (
	modeFUA mode = iota
	modeFlush
	modePLP
)

func (m mode) String() string { return [...]string{"fua", "flush", "plp"}[m] }

// parseMode reads Options.Durability; auto reports that it is to be chosen.
func parseMode(s string) (m mode, auto bool, err error) {
	switch s {
	case "", "auto":
		return modeFUA, true, nil
	case "fua":
		return modeFUA, false, nil
	case "flush":
		return modeFlush, false, nil
	case "plp":
		return modePLP, false, nil
	}
	return 0, false, fmt.Errorf("durability %q: want auto, fua, flush or plp: %w", s, redoubt.ErrInvalid)
}

const loopMajor = 7

// chooseMode chooses how writes become durable on the file or device that st
// describes. sys is where sysfs is mounted. plp is never chosen: only the
// operator can know that the power may go.
func chooseMode(st *unix.Stat_t, sys string) (mode, string) {
	switch {
	case st.Mode&unix.S_IFMT == unix.S_IFREG:
		return modeFUA, "a file: each write carries DSYNC, and the file system does what its device needs"
	case unix.Major(st.Rdev) == loopMajor:
		return modeFUA, "a loop device: each write carries DSYNC, and the file behind it does what its device needs"
	}
	queue, err := queueDir(filepath.Join(sys, "dev/block", fmt.Sprintf("%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))))
	if err != nil {
		return modeFUA, fmt.Sprintf("its write cache is unknown (%v): DSYNC is right with any", err)
	}
	cache, err := os.ReadFile(filepath.Join(queue, "write_cache"))
	if err != nil {
		return modeFUA, fmt.Sprintf("its write cache is unknown (%v): DSYNC is right with any", err)
	}
	if strings.TrimSpace(string(cache)) == "write through" {
		return modeFUA, "no volatile write cache (write through): DSYNC costs nothing"
	}
	fua, err := os.ReadFile(filepath.Join(queue, "fua"))
	if err == nil && strings.TrimSpace(string(fua)) == "1" {
		return modeFUA, "a volatile write cache, and the drive has FUA"
	}
	return modeFlush, "a volatile write cache and no FUA: one flush covers a group of writes"
}

// queueDir returns the directory with the queue settings of a block device: its
// own, or, of a partition, that of the whole device.
func queueDir(dev string) (string, error) {
	dir, err := filepath.EvalSymlinks(dev)
	if err != nil {
		return "", err
	}
	if _, err := os.Stat(filepath.Join(dir, "partition")); err == nil {
		dir = filepath.Dir(dir)
	}
	return filepath.Join(dir, "queue"), nil
}
