package ioring

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// The names of the engines, as in Options.Engine and Engine.Name.
const (
	Auto  = "auto"
	Uring = "uring"
	Sync  = "sync"
)

// Available returns the engines inside this binary, best first.
func Available() []string {
	if uringInside {
		return []string{Uring, Sync}
	}
	return []string{Sync}
}

// Open starts an engine on the file fd and says in words for the log which one
// it took, how it is set up, and why. fd stays the caller's: it must stay open,
// and an *os.File that it came from reachable, until after Close.
func Open(fd int, o Options) (Engine, string, error) {
	return open(fd, o, openUring)
}

// open is Open over any way to open a ring.
func open(fd int, o Options, ring func(int, Options) (Engine, string, error)) (Engine, string, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, "", fmt.Errorf("ioring: open: %w", err)
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil {
		return nil, "", fmt.Errorf("ioring: open: file descriptor %d: %w", fd, err) // the ring would take -1 for "no file"
	}
	if o.Engine == Sync {
		e := newSyncEngine(fd, o.Workers)
		return e, fmt.Sprintf("sync, as asked for: %d workers", o.Workers), nil
	}
	e, how, err := ring(fd, o)
	switch {
	case err == nil:
		return e, "uring: " + how, nil
	case o.Engine == Uring:
		return nil, "", fmt.Errorf("ioring: open: uring: %w (-io-engine=sync works everywhere)", err)
	}
	return newSyncEngine(fd, o.Workers), fmt.Sprintf("sync: %d workers; uring: %v", o.Workers, err), nil
}
