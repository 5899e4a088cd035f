package slab

import (
	"sync/atomic"

	"github.com/redoubt-storage/redoubt/internal/invariant"
)

// Spoil is what fills a slab after its last Drop in checked builds. Eight of
// them are no plausible length, LSN, handle or checksum.
const Spoil = 0xDB

// A Buf is one slab and the count of its holders. Bufs are made by New and live
// as long as their pool.
type Buf struct {
	// Set by New, never changed until the pool is closed.
	pool  *Pool
	bytes []byte

	holders atomic.Int32
}

// Bytes returns the whole slab, Size bytes, page-aligned. The slice is good for
// as long as the caller has a hold.
func (b *Buf) Bytes() []byte { return b.bytes }

// Hold adds a holder. The caller has a hold of its own while it calls.
func (b *Buf) Hold() {
	if n := b.holders.Add(1); n < 2 {
		invariant.Assert(false, "slab: Hold on a slab of pool %s that nobody holds", b.pool.opts.Name)
	}
}

// Drop takes a holder away; the last one returns the slab to its pool.
func (b *Buf) Drop() {
	n := b.holders.Add(-1)
	if n > 0 {
		return
	}
	if n < 0 {
		invariant.Assert(false, "slab: a Drop too many on a slab of pool %s", b.pool.opts.Name)
	}
	if invariant.Checked {
		spoil(b.bytes)
	}
	b.pool.put(b)
}

func spoil(b []byte) {
	for i := range b {
		b[i] = Spoil
	}
}
