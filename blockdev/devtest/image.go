package devtest

import "bytes"

const (
	pageSize   = 4096
	leafPages  = 256
	leafSize   = pageSize * leafPages
	sectorSize = 512
)

var zeroPage [pageSize]byte

// An owner marks the pages that one image may write in place. It has a size, so
// that two are never equal.
type owner struct{ _ byte }

type page struct {
	owner *owner // nil: shared by two images of one disk, copied before a write
	b     [pageSize]byte
}

type leaf struct {
	owner *owner
	pages [leafPages]*page
}

// An image is the content of a disk: a tree of pages that copies share until
// one of them writes. Pages that were never written are zero.
type image struct {
	size   int64
	own    *owner
	leaves []*leaf
}

func newImage(size int64) *image {
	return &image{size: size, own: new(owner), leaves: make([]*leaf, (size+leafSize-1)/leafSize)}
}

// clone returns a copy. Neither owns the pages of the moment any more.
func (m *image) clone() *image {
	m.own = new(owner)
	return &image{size: m.size, own: new(owner), leaves: append([]*leaf(nil), m.leaves...)}
}

// page returns the content of page i, to be read only.
func (m *image) page(i int64) []byte {
	if l := m.leaves[i/leafPages]; l != nil {
		if p := l.pages[i%leafPages]; p != nil {
			return p.b[:]
		}
	}
	return zeroPage[:]
}

// leaf returns the leaf of page i, to be written.
func (m *image) leaf(i int64) *leaf {
	at := &m.leaves[i/leafPages]
	switch {
	case *at == nil:
		*at = &leaf{owner: m.own}
	case (*at).owner != m.own:
		c := **at
		c.owner = m.own
		*at = &c
	}
	return *at
}

// mutable returns the content of page i, to be written.
func (m *image) mutable(i int64) []byte {
	at := &m.leaf(i).pages[i%leafPages]
	switch {
	case *at == nil:
		*at = &page{owner: m.own}
	case (*at).owner != m.own:
		c := **at
		c.owner = m.own
		*at = &c
	}
	return (*at).b[:]
}

// each calls f for the pieces of [off, off+n), none of which crosses a page.
func each(off int64, n int, f func(page int64, in, done, size int)) {
	for done := 0; done < n; {
		at := off + int64(done)
		in := int(at % pageSize)
		size := min(pageSize-in, n-done)
		f(at/pageSize, in, done, size)
		done += size
	}
}

func (m *image) read(b []byte, off int64) {
	each(off, len(b), func(p int64, in, done, size int) {
		copy(b[done:done+size], m.page(p)[in:])
	})
}

func (m *image) write(b []byte, off int64) {
	each(off, len(b), func(p int64, in, done, size int) {
		copy(m.mutable(p)[in:in+size], b[done:])
	})
}

// equal reports whether b stands at off.
func (m *image) equal(b []byte, off int64) bool {
	same := true
	each(off, len(b), func(p int64, in, done, size int) {
		same = same && bytes.Equal(m.page(p)[in:in+size], b[done:done+size])
	})
	return same
}

// writeBoth writes b to two images, which share the whole pages of it.
func writeBoth(m, n *image, b []byte, off int64) {
	each(off, len(b), func(i int64, in, done, size int) {
		if size < pageSize {
			copy(m.mutable(i)[in:in+size], b[done:])
			copy(n.mutable(i)[in:in+size], b[done:])
			return
		}
		p := &page{b: [pageSize]byte(b[done:])}
		m.leaf(i).pages[i%leafPages] = p
		n.leaf(i).pages[i%leafPages] = p
	})
}
