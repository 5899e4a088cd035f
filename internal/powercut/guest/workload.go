package guest

import (
	"context"
	"errors"
	"fmt"
	"slices"
)

// ErrLost is the verdict that a promise was broken: by lost or wrong records, and
// also by a program that does not come up again after a cut. An error that does not
// match it says that the workload could not do its work, which proves nothing.
var ErrLost = errors.New("lost")

// A Workload is what runs on the guest's devices.
type Workload interface {
	// Format makes blank devices ready for use.
	Format(ctx context.Context, e *Env) error

	// Verify reads everything back and compares it with what e.Config.Streams says
	// was acknowledged. It returns how far each stream is whole now, or an error
	// that matches ErrLost.
	Verify(ctx context.Context, e *Env) (have []uint64, err error)

	// Load goes on after the records that Verify found, and calls e.Ack for what is
	// acknowledged, until the power goes. It returns nil only when there is no
	// room left.
	Load(ctx context.Context, e *Env, have []uint64) error
}

// Env is what a workload sees of its guest.
type Env struct {
	Config
	Paths []string // the devices
	Open  func(path string) (Medium, error)
	Ack   func(stream int, upTo uint64) // tells the host; does not wait
	See   func(what string, n uint64)   // tells the host what a boot has met
	Logf  func(format string, args ...any)

	// Redoubt is the binary of workload node, Listen where its node listens.
	// Default: as in the guest.
	Redoubt, Listen string
}

// New returns the named workload.
func New(name string) (Workload, error) {
	if i := slices.IndexFunc(variants, func(v variant) bool { return v.name == name }); i >= 0 {
		return &Standin{variant: variants[i]}, nil
	}
	if i := slices.IndexFunc(nodeVariants, func(v nodeVariant) bool { return v.name == name }); i >= 0 {
		return &Node{nodeVariant: nodeVariants[i]}, nil
	}
	return nil, fmt.Errorf("guest: no workload %q", name)
}

// Run does what the host asks for over the line, and reports what came of it.
func Run(ctx context.Context, l *Line, e *Env) error {
	w, err := New(e.Workload)
	if err == nil {
		err = run(ctx, l, e, w)
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, ErrLost):
		return l.Say(Message{Verb: Lost, Text: err.Error()})
	}
	return l.Say(Message{Verb: Broken, Text: err.Error()})
}

func run(ctx context.Context, l *Line, e *Env, w Workload) error {
	if e.Phase == PhaseFormat {
		if err := w.Format(ctx, e); err != nil {
			return err
		}
		return l.Say(Message{Verb: Formatted})
	}
	e.See = func(what string, n uint64) {
		if n > 0 {
			_ = l.Say(Message{Verb: Seen, Text: what, N: n}) // a line that fails keeps its error
		}
	}
	have, err := w.Verify(ctx, e)
	if err != nil {
		return err
	}
	if err := judge(e.Streams, have); err != nil {
		return err
	}
	for stream, n := range have {
		if err := l.Say(Message{Verb: Have, Stream: stream, N: n}); err != nil {
			return err
		}
	}
	if err := l.Say(Message{Verb: Verified}); err != nil || e.Phase == PhaseVerify {
		return err
	}
	if err := l.AwaitGo(); err != nil {
		return err
	}
	if err := l.Say(Message{Verb: Loading}); err != nil {
		return err
	}
	e.Ack = l.Ack
	if err := w.Load(ctx, e, have); err != nil {
		return err
	}
	return l.Say(Message{Verb: Full})
}

// judge compares what is there with what was acknowledged: the one rule that holds
// for every workload, so no workload can forget it.
func judge(streams []Stream, have []uint64) error {
	if len(streams) > len(have) {
		return fmt.Errorf("guest: stream %d of %d is gone: %w", len(have), len(streams), ErrLost)
	}
	for i, s := range streams {
		if have[i] < s.Acked {
			return fmt.Errorf("guest: stream %d: acknowledged up to %d, whole up to %d: %w", i, s.Acked, have[i], ErrLost)
		}
	}
	return nil
}
