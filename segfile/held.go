package segfile

import (
	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/redo"
)

// Held is one record that a segment holds.
type Held struct {
	LSN redoubt.LSN
	CPL bool
}

// HeldAbove appends to dst, in LSN order, up to n records that the segment
// holds completely, that is at or below SCL, above an LSN. It reports whether
// there are more. Records that left the log are not listed: they are in pages,
// below the VDL. It may wait for the device.
func (s *Store) HeldAbove(g *Segment, above redoubt.LSN, n int, dst []Held) (_ []Held, more bool, err error) {
	pin := s.Pin()
	defer s.Unpin(pin)
	w := s.NewWindow()
	defer w.Close()
	for limit := len(dst) + n; ; {
		s.mu.Lock()
		var ref blockRef
		i := g.blocks.find(above + 1)
		if i < g.blocks.end() && !g.deleted {
			ref = *g.blocks.at(i)
		}
		scl := g.scl
		s.mu.Unlock()
		if ref.len == 0 || above >= scl {
			return dst, false, nil
		}
		b, err := w.Batch(g, ref.pos, ref.len)
		if err != nil {
			return dst, false, err
		}
		h, err := redo.ParseHeader(b)
		if err != nil {
			return dst, false, segErr(g, redoubt.ErrCorrupt, "log at position %d: %v", ref.pos, err)
		}
		for it := redo.Records(b, h); it.Next() && it.LSN <= min(ref.last, scl); {
			if it.LSN <= above {
				continue
			}
			if len(dst) == limit {
				return dst, true, nil
			}
			dst = append(dst, Held{it.LSN, it.CPL})
			above = it.LSN
		}
		above = max(above, min(ref.last, scl))
		w.Release()
	}
}
