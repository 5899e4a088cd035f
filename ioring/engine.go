package ioring

import (
	"fmt"
	"io"

	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/internal/invariant"
	"golang.org/x/sys/unix"
)

const (
	// MaxPieces bounds len(Op.Bufs). It is the kernel's own limit (IOV_MAX).
	MaxPieces = 1024

	// MaxTransfer bounds the bytes of one Op: 1 GiB, half of what the kernel
	// would cut a transfer at, so that a short transfer always means trouble.
	MaxTransfer = 1 << 30

	// maxTries bounds how often one Op is handed to the kernel again after
	// EINTR, EAGAIN or EBUSY. A device that still says so is not coming back.
	maxTries = 1000
)

// A Kind says what an Op does.
type Kind uint8

const (
	OpRead  Kind = iota + 1 // fill Bufs from the file at Off
	OpWrite                 // write Bufs to the file at Off
	OpSync                  // fdatasync: cover every write completed before Submit
)

func (k Kind) String() string {
	switch k {
	case OpRead:
		return "read"
	case OpWrite:
		return "write"
	case OpSync:
		return "sync"
	}
	return fmt.Sprintf("Kind(%d)", uint8(k))
}

// An Op is one request to a device. The caller fills it in, hands it to
// [Engine.Submit] and leaves it and its buffers alone until Done. An Op may be
// used again from then on, also within Done, but not copied while in flight.
type Op struct {
	Kind  Kind
	DSync bool     // OpWrite only: complete when the bytes are on stable storage (RWF_DSYNC)
	Off   int64    // position in the file in bytes; a multiple of the logical block under O_DIRECT
	Bufs  [][]byte // 1 to MaxPieces pieces, none empty, none of them for OpSync; aligned under O_DIRECT

	// Done is called exactly once for each Submit, with nil when every byte was
	// transferred. It runs on a thread of the engine (or inside Submit, see
	// Engine), must not block, and may Submit again. Required.
	Done func(op *Op, err error)
	Ctx  any // the caller's; the engine never looks at it

	// Owned by the engine between Submit and Done.
	next  *Op    // the next one in an inbox or a list
	size  int    // sum of the lengths of Bufs
	tries int    // how often the kernel asked for another try
	busy  bool   // between Submit and Done: catches a second Submit
	self  [1]*Op // see SubmitTo
}

// SubmitTo is e.Submit(op) without the allocation: the compiler puts the
// argument list of a variadic interface call on the heap, and an Op brings its
// own. Callers with a slice at hand use e.Submit(ops...), which is as good.
func (op *Op) SubmitTo(e Engine) {
	op.self[0] = op
	e.Submit(op.self[:]...)
}

// An Engine performs Ops on one file. See the package comment for threads,
// ownership and order.
type Engine interface {
	// Submit takes ops over and never blocks on the device. Any goroutine may
	// call it, also from Done. The Done of an op that is refused, or of an
	// engine that works in place, runs before Submit returns: hold no lock that
	// Done takes. The slice itself is the caller's again when Submit returns.
	Submit(ops ...*Op)

	// Name is "uring", "sync" or "sim".
	Name() string

	// Stats may be called at any time; its figures are not of one instant.
	Stats() Stats

	// Close waits for everything that was submitted before, then stops the
	// engine's threads. Ops submitted later complete with redoubt.ErrClosed. Not
	// to be called from Done. The file stays open; it is the caller's.
	Close() error
}

// Options tune an engine. The zero value is what production runs.
type Options struct {
	// Engine is "auto", "uring" or "sync". Default "auto": uring if it is
	// inside this binary and the kernel lets us, else sync.
	Engine string

	// Depth is the number of entries of the ring, 1 to 16384; the kernel rounds
	// it up to a power of two. Twice as many ops, less one, can be in the
	// kernel at once; what is above waits in order. Default 256: the depth of an
	// NVMe queue, past which requests queue in a costlier place.
	Depth int

	// Workers bounds the threads of the sync engine, 1 to 4096. Default 64: as
	// many as it takes to keep a drive busy that wants a depth of 64.
	Workers int

	// Regions are registered with the ring: an op whose pieces all lie in one of
	// them costs the kernel no look-up of pages. They stay mapped until Close.
	// Default none. The sync engine has no use for them.
	Regions [][]byte
}

// Stats counts what an engine has done since it was opened.
type Stats struct {
	Submitted uint64 // ops that the engine has taken
	Completed uint64 // of these, how many had their Done called
	Failed    uint64 // of these, how many with an error
	Retried   uint64 // tries after EINTR, EAGAIN or EBUSY
	Syscalls  uint64 // system calls that moved or awaited ops
	Wakeups   uint64 // times a Submit had to wake the engine's thread
}

// InFlight returns how many ops the engine has taken and not completed.
func (s Stats) InFlight() uint64 { return s.Submitted - s.Completed }

// errClosed is what an op gets that came after Close.
var errClosed = fmt.Errorf("ioring: submit after Close: %w", redoubt.ErrClosed)

// withDefaults checks o and fills in its zero fields.
func (o Options) withDefaults() (Options, error) {
	if o.Engine == "" {
		o.Engine = Auto
	}
	if o.Depth == 0 {
		o.Depth = 256
	}
	if o.Workers == 0 {
		o.Workers = 64
	}
	switch {
	case o.Engine != Auto && o.Engine != Uring && o.Engine != Sync:
		return o, fmt.Errorf("engine %q: want auto, uring or sync", o.Engine)
	case o.Depth < 1 || o.Depth > 16384:
		return o, fmt.Errorf("depth %d: want 1 to 16384", o.Depth)
	case o.Workers < 1 || o.Workers > 4096:
		return o, fmt.Errorf("workers %d: want 1 to 4096", o.Workers)
	}
	for i, r := range o.Regions {
		if len(r) == 0 {
			return o, fmt.Errorf("region %d is empty", i)
		}
	}
	return o, nil
}

// accept marks op as taken and says what is wrong with it, if anything is.
func accept(op *Op) error {
	if op.busy || op.Done == nil {
		invariant.Assert(!op.busy, "ioring: %v submitted again before its Done", op.Kind)
		invariant.Assert(op.Done != nil, "ioring: %v submitted without Done", op.Kind)
	}
	op.busy, op.tries, op.size = true, 0, 0
	for _, b := range op.Bufs {
		if len(b) == 0 || len(b) > MaxTransfer-op.size {
			return op.refuse(fmt.Sprintf("a piece of %d bytes after %d: want none empty and 1 GiB at most", len(b), op.size))
		}
		op.size += len(b)
	}
	switch {
	case op.Kind != OpRead && op.Kind != OpWrite && op.Kind != OpSync:
		return op.refuse("unknown kind")
	case op.Kind == OpSync && op.size != 0:
		return op.refuse("a sync takes no buffers")
	case op.Kind != OpSync && (len(op.Bufs) == 0 || len(op.Bufs) > MaxPieces):
		return op.refuse(fmt.Sprintf("%d pieces: want 1 to %d", len(op.Bufs), MaxPieces))
	case op.DSync && op.Kind != OpWrite:
		return op.refuse("DSync is for writes")
	case op.Off < 0 || op.Off > 1<<62:
		return op.refuse("offset out of range")
	}
	return nil
}

func (op *Op) refuse(why string) error {
	return fmt.Errorf("ioring: %v at %d: %s: %w", op.Kind, op.Off, why, redoubt.ErrInvalid)
}

// finish hands op back to its owner, who may submit it again at once.
func (op *Op) finish(err error) {
	op.busy, op.next = false, nil
	op.Done(op, err)
}

// retryable reports whether the kernel asked for another try and op may have it.
func (op *Op) retryable(errno unix.Errno) bool {
	if !transient(errno) || op.tries >= maxTries {
		return false
	}
	op.tries++
	return true
}

func transient(errno unix.Errno) bool {
	return errno == unix.EINTR || errno == unix.EAGAIN || errno == unix.EBUSY
}

// result turns what the kernel said into what the caller is told. n counts only
// when errno is 0.
func (op *Op) result(n int, errno unix.Errno) error {
	switch {
	case errno == unix.EINVAL:
		return fmt.Errorf("ioring: %v of %d bytes at %d: %w (offset, lengths and buffers aligned to the logical block?)",
			op.Kind, op.size, op.Off, errno)
	case errno != 0:
		return fmt.Errorf("ioring: %v of %d bytes at %d: %w", op.Kind, op.size, op.Off, errno)
	case n == op.size:
		return nil
	case op.Kind == OpRead:
		return fmt.Errorf("ioring: read of %d bytes at %d: the file ends after %d: %w", op.size, op.Off, n, io.ErrUnexpectedEOF)
	}
	return fmt.Errorf("ioring: %v of %d bytes at %d: only %d were taken: %w", op.Kind, op.size, op.Off, n, io.ErrShortWrite)
}
