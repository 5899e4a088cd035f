package guest

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"

	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/redo"
)

// What a segment holds is a function of the seed, the stream and the LSN, so it is
// known without being kept. The LSN holds the life as well:
//
//	LSN = life << lifeBits + 1, 2, 3, ...
//
// A life that goes on after SCL s voids (s, life << lifeBits], which is all that
// any earlier life may have written past s, acknowledged to nobody. So the LSNs
// that exist follow from where each life began, which the host remembers.
const (
	lifeBits = 20 // an LSN's distance to its page's last one stays within 32 bits

	pgPages   = redoubt.MinPGPages
	hotPages  = 160 // pages that are written; the others stay zero
	maxChange = redoubt.PageSize
)

// firstLSN is the LSN before the first that a life writes.
func firstLSN(life int) redoubt.LSN { return redoubt.LSN(life) << lifeBits }

// Records counts the acknowledged records of a workload's stream.
func Records(workload string, s Stream) uint64 {
	if !slices.ContainsFunc(nodeVariants, func(v nodeVariant) bool { return v.name == workload }) {
		return s.Acked
	}
	n := uint64(0)
	for i, start := range s.Lives {
		last := s.Acked
		if i+1 < len(s.Lives) {
			last = min(last, s.Lives[i+1].From-1)
		}
		if first := uint64(firstLSN(start.Life)); last > first {
			n += last - first
		}
	}
	return n
}

// hotPage spreads the pages that are written over the map pages of a segment.
func hotPage(i int) uint32 { return uint32(i * (pgPages / hotPages)) }

// identity makes an ID of what it is for. Lives of other seeds find no segment of
// ours.
func identity(what string, seed uint64, stream int) redoubt.ID {
	sum := sha256.Sum256(fmt.Appendf(nil, "%s %d %d", what, seed, stream))
	return redoubt.ID(sum[:16])
}

// A change is what one record does.
type change struct {
	kind        redo.Kind
	page        uint32
	off, n, src int
	fill        byte
	data        []byte // of a write; in the memory given to changeAt
	cpl         bool
}

// changeAt gives the record with this LSN. buf, of maxChange bytes, receives the
// bytes of a write.
func changeAt(seed uint64, stream int, lsn redoubt.LSN, buf []byte) change {
	pcg := rand.NewPCG(seed^uint64(stream)<<56, uint64(lsn))
	r := rand.New(pcg)
	c := change{kind: redo.Write, page: hotPage(r.IntN(hotPages)), n: 1 + r.IntN(800), cpl: r.IntN(3) == 0}
	switch k := r.IntN(64); {
	case k < 6:
		c.kind, c.n, c.fill = redo.Fill, 1+r.IntN(maxChange), byte(r.Uint32())
	case k < 10:
		c.kind, c.n = redo.Move, 1+r.IntN(maxChange/2)
		c.src = r.IntN(redoubt.PageSize - c.n + 1)
	case k < 11:
		return change{kind: redo.Mark, page: redo.MarkPage}
	case k < 14:
		c.n = 1 + r.IntN(maxChange)
	case k < 15:
		c.n = maxChange // covers the page, so that nothing below is needed
	}
	c.off = r.IntN(redoubt.PageSize - c.n + 1)
	if c.kind == redo.Write {
		c.data = buf[:c.n]
		for at := 0; at < c.n; at += 8 {
			var word [8]byte
			binary.LittleEndian.PutUint64(word[:], pcg.Uint64())
			copy(c.data[at:], word[:])
		}
	}
	return c
}

// add appends the record to a batch; false: it is full.
func (c change) add(b *redo.Builder, lsn, pagePrev redoubt.LSN) bool {
	switch c.kind {
	case redo.Write:
		return b.Write(lsn, c.page, pagePrev, c.off, c.data, c.cpl)
	case redo.Fill:
		return b.Fill(lsn, c.page, pagePrev, c.off, c.n, c.fill, c.cpl)
	case redo.Move:
		return b.Move(lsn, c.page, pagePrev, c.off, c.src, c.n, c.cpl)
	}
	return b.Mark(lsn, int64(lsn), 0)
}

// An image is what a segment holds as of an LSN: the model that reads are compared
// with. It does by itself what a record says, without the code of package redo.
type image struct {
	seed   uint64
	stream int
	at     redoubt.LSN // the last record that was applied
	pages  map[uint32]*imagePage
	buf    []byte
}

// An imagePage is one page of an image.
type imagePage struct {
	last  redoubt.LSN // the page's last record
	bytes []byte
}

func newImage(seed uint64, stream int) *image {
	return &image{seed: seed, stream: stream, pages: make(map[uint32]*imagePage), buf: make([]byte, maxChange)}
}

// advance applies every record up to an LSN, of the lives that the host knows.
func (m *image) advance(known Stream, to redoubt.LSN) {
	for i, start := range known.Lives {
		from, last := firstLSN(start.Life)+1, to
		if i+1 < len(known.Lives) {
			last = min(last, redoubt.LSN(known.Lives[i+1].From)-1)
		}
		for lsn := max(from, m.at+1); lsn <= last; lsn++ {
			m.apply(lsn, changeAt(m.seed, m.stream, lsn, m.buf))
		}
	}
}

// apply does what a record says.
func (m *image) apply(lsn redoubt.LSN, c change) {
	m.at = lsn
	if c.kind == redo.Mark {
		return
	}
	p := m.pages[c.page]
	if p == nil {
		p = &imagePage{bytes: make([]byte, redoubt.PageSize)}
		m.pages[c.page] = p
	}
	p.last = lsn
	to := p.bytes[c.off : c.off+c.n]
	switch c.kind {
	case redo.Write:
		copy(to, c.data)
	case redo.Fill:
		for i := range to {
			to[i] = c.fill
		}
	case redo.Move:
		copy(to, p.bytes[c.src:c.src+c.n])
	}
}

// page gives a page's bytes and the LSN of its last record; of one that was never
// written, zeros and 0.
func (m *image) page(n uint32) ([]byte, redoubt.LSN) {
	if p := m.pages[n]; p != nil {
		return p.bytes, p.last
	}
	return zeroPage[:], 0
}

var zeroPage [redoubt.PageSize]byte
