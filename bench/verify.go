package bench

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"time"

	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/peer"
	"github.com/redoubt-storage/redoubt/wire"
)

// verifyDepth is how many requests are in flight, of 64 pages each: enough that
// the node is never idle while a MiB is hashed.
const verifyDepth = 8

// A verification reads a volume back, page by page, and hashes it.
type verification struct {
	opts   *ReplayOptions
	layout *layout

	// Where to read: need is the last LSN of each group at or below point. With
	// point 0 both are what the segments say themselves.
	point redoubt.LSN
	need  []redoubt.LSN

	// What came of it.
	sum     [32]byte
	control controlRecord
	elapsed time.Duration

	hash hash.Hash
	next uint64 // page to be hashed next
}

// run reads the volume. When the node goes away it goes on from the page where
// it was.
func (v *verification) run(ctx context.Context) error {
	start := time.Now()
	v.hash = sha256.New()
	err := v.opts.retry(ctx, func() error {
		s, err := openSession(ctx, v.opts.Node, v.layout, 0, func(int) peer.Options { return peer.Options{Name: "redoubt bench verify"} })
		if errors.Is(err, redoubt.ErrNotFound) {
			return fmt.Errorf("there is no such volume; replay the trace first, with the same -volume and -pg-size: %w", err)
		}
		if err != nil {
			return err
		}
		defer s.close()
		if v.point == 0 {
			v.choosePoint(s)
		}
		if err := v.readControl(ctx, s); err != nil {
			return err
		}
		return v.pages(ctx, s)
	})
	v.opts.Progress.Done()
	if err != nil {
		return fmt.Errorf("bench: verify: %w", err)
	}
	v.hash.Sum(v.sum[:0])
	v.elapsed = time.Since(start)
	return nil
}

// choosePoint takes the highest VDL that any segment was told. Everything up to
// it is durable, so a segment whose SCL is below it has no more.
func (v *verification) choosePoint(s *session) {
	for _, a := range s.groups {
		v.point = max(v.point, a.desc.VDL)
	}
	v.need = make([]redoubt.LSN, len(s.groups))
	for pg, a := range s.groups {
		v.need[pg] = min(a.desc.SCL, v.point)
	}
}

func (v *verification) readControl(ctx context.Context, s *session) error {
	pg, index := v.layout.place(v.layout.control())
	req := peer.ReadRequest{Point: readPointOf(v.point, v.need[pg]), Need: v.need[pg], Pages: []uint32{index}, Buf: make([]byte, redoubt.PageSize)}
	if err := s.read(ctx, pg, &req); err != nil {
		return err
	}
	var err error
	v.control, err = parseControl(req.Buf)
	return err
}

// A verifySlot is one request in flight.
type verifySlot struct {
	peer.ReadRequest
	pg   int
	done chan error
}

// pages reads and hashes from v.next on.
func (v *verification) pages(ctx context.Context, s *session) error {
	slots := make([]*verifySlot, verifyDepth)
	for i := range slots {
		slots[i] = &verifySlot{done: make(chan error, 1)}
		slots[i].Buf = make([]byte, wire.MaxPages*redoubt.PageSize)
		slots[i].Pages = make([]uint32, 0, wire.MaxPages)
	}
	ask, asked, taken := v.next, 0, 0
	for taken < asked || ask < v.layout.pages {
		for asked-taken < len(slots) && ask < v.layout.pages {
			n, err := v.ask(s, slots[asked%len(slots)], ask)
			if errors.Is(err, redoubt.ErrBusy) && asked > taken {
				break
			}
			if err != nil {
				return err
			}
			ask += uint64(n)
			asked++
		}
		if err := v.take(ctx, slots[taken%len(slots)]); err != nil {
			return err
		}
		taken++
	}
	return nil
}

// ask sends a request for the pages from first on, as many as lie side by side.
func (v *verification) ask(s *session, q *verifySlot, first uint64) (n int, err error) {
	pg, index := v.layout.place(first)
	conn := s.groups[pg].conn
	n = min(wire.MaxPages, int(conn.Welcome().MaxPages), v.layout.used(pg)-int(index))
	q.Pages = q.Pages[:0]
	for i := range n {
		q.Pages = append(q.Pages, index+uint32(i))
	}
	q.pg, q.Point, q.Need = pg, readPointOf(v.point, v.need[pg]), v.need[pg]
	q.Done = func(_ *peer.ReadRequest, err error) { q.done <- err }
	s.prepare(pg, &q.ReadRequest)
	return n, conn.Read(&q.ReadRequest)
}

// take waits for a request's answer and hashes it.
func (v *verification) take(ctx context.Context, q *verifySlot) error {
	select {
	case err := <-q.done:
		if err != nil {
			return err
		}
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if err := pageErrors(v.layout, q.pg, &q.ReadRequest); err != nil {
		return err
	}
	v.hash.Write(q.Buf[:len(q.Pages)*redoubt.PageSize])
	v.next += uint64(len(q.Pages))
	v.opts.Progress.Show(v.next, v.layout.pages, fmt.Sprintf("reading back, page %d of %d", v.next, v.layout.pages))
	return nil
}
