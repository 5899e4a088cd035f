package netserver

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/slab"
	"github.com/redoubt-storage/redoubt/wire"
)

// Options describe a server. Pool and Handler are required; any other field
// left zero takes the default in its comment, and a field out of range is an
// error from Serve.
type Options struct {
	// Pool is where the frames go. Its slabs have room for two frames of
	// Welcome.MaxFrame at least; 1 MiB for the default.
	Pool *slab.Pool

	// Handler takes the frames.
	Handler Handler

	// Welcome is what a client is told: who the node is, and the limits, which
	// are enforced. Defaults: Version 1, Align 512, MaxFrame 512 KiB (the largest
	// batch and as much again), MaxPages 64, MaxInFlight 256, MaxHandles 65536.
	Welcome wire.Welcome

	// MaxConns bounds the connections, each of which costs two goroutines and a
	// few KiB. Past it a connection is accepted, told so and closed. Default
	// 4096.
	MaxConns int

	// HelloTimeout bounds the time from accept to a complete HELLO. Default 5 s.
	HelloTimeout time.Duration

	// FrameTimeout bounds the time from the first byte of a frame to its last.
	// A connection without any byte on its way may rest for ever. Default 30 s.
	FrameTimeout time.Duration

	// WriteTimeout bounds one write of about 1 MiB to a client that doesn't
	// read. Default 30 s.
	WriteTimeout time.Duration

	// LingerTimeout bounds how long a connection that we close is read from
	// until the client has closed its side too: closed at once, bytes not yet
	// read would make the kernel throw our last answers away. Default 1 s.
	LingerTimeout time.Duration

	// ReadBuffer and WriteBuffer are the sizes of the socket's buffers in bytes.
	// Default: what the kernel finds fit.
	ReadBuffer, WriteBuffer int

	// Drain is called by Shutdown when nothing is read any more, and returns
	// when the handler is done with the frames it took, so that their acks
	// still go out. Default: nothing to wait for.
	Drain func(ctx context.Context)

	// Log gets a line for each connection that was closed for a reason. Default
	// slog.Default().
	Log *slog.Logger
}

// withDefaults fills in the defaults and checks the rest.
func (o Options) withDefaults() (Options, error) {
	w := &o.Welcome
	setZero(&w.Version, wire.Version)
	setZero(&w.Align, wire.HelloAlign)
	setZero(&w.MaxFrame, 512<<10)
	setZero(&w.MaxPages, wire.MaxPages)
	setZero(&w.MaxInFlight, 256)
	setZero(&w.MaxHandles, 65536)
	setZero(&o.MaxConns, 4096)
	setZero(&o.HelloTimeout, 5*time.Second)
	setZero(&o.FrameTimeout, 30*time.Second)
	setZero(&o.WriteTimeout, 30*time.Second)
	setZero(&o.LingerTimeout, time.Second)
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.Pool == nil || o.Handler == nil {
		return o, fmt.Errorf("netserver: options without a pool or a handler: %w", redoubt.ErrInvalid)
	}
	if err := w.Check(); err != nil {
		return o, fmt.Errorf("netserver: %w", err)
	}
	switch size := o.Pool.Size(); {
	case w.Version != wire.Version:
		return o, fmt.Errorf("netserver: version %d, this is %d: %w", w.Version, wire.Version, redoubt.ErrInvalid)
	case size < 2*int(w.MaxFrame):
		return o, fmt.Errorf("netserver: slabs of %d bytes hold no two frames of %d: %w", size, w.MaxFrame, redoubt.ErrInvalid)
	case o.MaxConns < 1:
		return o, fmt.Errorf("netserver: at most %d connections: %w", o.MaxConns, redoubt.ErrInvalid)
	case min(o.HelloTimeout, o.FrameTimeout, o.WriteTimeout, o.LingerTimeout) < time.Millisecond:
		return o, fmt.Errorf("netserver: timeouts %v, %v, %v, %v: want 1 ms and more: %w",
			o.HelloTimeout, o.FrameTimeout, o.WriteTimeout, o.LingerTimeout, redoubt.ErrInvalid)
	case o.ReadBuffer < 0 || o.WriteBuffer < 0:
		return o, fmt.Errorf("netserver: socket buffers of %d and %d bytes: %w", o.ReadBuffer, o.WriteBuffer, redoubt.ErrInvalid)
	}
	return o, nil
}

func setZero[T comparable](p *T, v T) {
	var zero T
	if *p == zero {
		*p = v
	}
}
