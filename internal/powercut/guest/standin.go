package guest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
)

// A variant is how a stand-in makes its records durable, rightly or wrongly.
type variant struct {
	name string

	// early acknowledges when the writes have completed, before the flush: the
	// bug of a program that forgets that drives have caches.
	early bool

	// beside submits the flush together with the writes instead of after them,
	// and acknowledges when all have completed: the bug of an unlinked fsync.
	beside bool
}

var variants = []variant{
	{name: "standin"},
	{name: "planted-early", early: true},
	{name: "planted-beside", beside: true},
}

// A Standin is a log of checksummed records on each raw device, with nothing
// between it and the drive: the smallest program whose promises a power cut can
// break. It proves the machine before the machine judges anything larger.
type Standin struct {
	variant
}

// A Medium is what a stand-in needs of a device. OpenDevice gives a real one.
type Medium interface {
	io.ReaderAt
	io.WriterAt
	Sync() error // a flush: what has completed before is durable afterwards
	Size() int64
	Block() int // bytes of a logical block
	Close() error
}

// Format has nothing to do: a blank device is an empty log.
func (s *Standin) Format(_ context.Context, e *Env) error {
	return s.each(e, func(int, Medium) error { return nil })
}

// Verify scans every log up to its end.
func (s *Standin) Verify(_ context.Context, e *Env) ([]uint64, error) {
	have := make([]uint64, len(e.Paths))
	err := s.each(e, func(stream int, m Medium) error {
		end, err := scan(m, e.Seed, stream, e.history(stream))
		have[stream] = end.n
		return err
	})
	return have, err
}

// Load appends to all logs at once.
func (s *Standin) Load(ctx context.Context, e *Env, have []uint64) error {
	return s.each(e, func(stream int, m Medium) error {
		end, err := scan(m, e.Seed, stream, e.history(stream))
		if err != nil {
			return err
		}
		return s.write(ctx, e, stream, m, end)
	})
}

// history is what the host knows of a stream, nothing before the first load.
func (e *Env) history(stream int) Stream {
	if stream < len(e.Streams) {
		return e.Streams[stream]
	}
	return Stream{}
}

// each runs f on every device at the same time.
func (s *Standin) each(e *Env, f func(stream int, m Medium) error) error {
	errs := make([]error, len(e.Paths))
	var wg sync.WaitGroup
	for i, path := range e.Paths {
		wg.Go(func() {
			m, err := e.Open(path)
			if err != nil {
				errs[i] = err
				return
			}
			errs[i] = errors.Join(f(i, m), m.Close())
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// position is a place in a log: after record n, at byte off.
type position struct {
	n    uint64
	off  int64
	life int // that wrote record n
}

// scan reads a log from its start to its end: the first place where there is no
// whole record that continues it. One of an earlier life than its predecessor is
// what a later life's recovery has cut off.
func scan(m Medium, seed uint64, stream int, known Stream) (position, error) {
	var end position
	buf := aligned(maxRecord)
	for {
		window := buf[:min(int64(len(buf)), m.Size()-end.off)]
		if len(window) == 0 {
			return end, nil
		}
		if _, err := m.ReadAt(window, end.off); err != nil {
			return end, fmt.Errorf("guest: device %d at %d: %w", stream, end.off, err)
		}
		f, err := decodeRecord(window, m.Block(), seed, stream)
		if err != nil || f.n != end.n+1 || f.life < end.life {
			return end, nil
		}
		if want := known.LifeOf(f.n); f.life != want {
			return end, fmt.Errorf("guest: stream %d: record %d is life %d's, expected life %d's: %w", stream, f.n, f.life, want, ErrLost)
		}
		end = position{n: f.n, off: end.off + int64(f.bytes), life: f.life}
	}
}

// write appends groups of records until the device is full, the context ends or
// the power goes.
func (s *Standin) write(ctx context.Context, e *Env, stream int, m Medium, end position) error {
	r := rand.New(rand.NewPCG(e.Seed, uint64(stream)<<32|uint64(e.Life)))
	const most = 8 // records in a group
	arena := aligned(most * maxRecord)
	for ctx.Err() == nil {
		group := arena[:0]
		var ends []int
		for range 1 + r.IntN(most) {
			group = encodeRecord(group, m.Block(), e.Seed, stream, end.n+uint64(len(ends))+1, e.Life)
			ends = append(ends, len(group))
		}
		if end.off+int64(len(group)) > m.Size() {
			return nil
		}
		last := end.n + uint64(len(ends))
		if err := s.persist(m, group, ends, end.off, func() { e.Ack(stream, last) }); err != nil {
			return fmt.Errorf("guest: device %d at %d: %w", stream, end.off, err)
		}
		end = position{n: last, off: end.off + int64(len(group)), life: e.Life}
	}
	return nil
}

// persist writes the records of a group, all at once so that the drive may have
// them in any order, flushes, and acknowledges; or does one of these too early.
func (s *Standin) persist(m Medium, group []byte, ends []int, off int64, ack func()) error {
	errs := make([]error, len(ends)+1)
	var wg sync.WaitGroup
	from := 0
	for i, to := range ends {
		piece, at := group[from:to], off+int64(from)
		wg.Go(func() { _, errs[i] = m.WriteAt(piece, at) })
		from = to
	}
	if s.beside {
		wg.Go(func() { errs[len(ends)] = m.Sync() })
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if s.early {
		ack()
	}
	if !s.beside {
		if err := m.Sync(); err != nil {
			return err
		}
	}
	ack()
	return nil
}
