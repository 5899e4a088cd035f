// Package slab holds the memory that payload lives in: page-aligned buffers of
// one size, taken once, before the first request, and never grown. A slab
// receives bytes from a socket and the device writes them from there (or the
// other way round), so no payload is copied in user space and nothing is
// allocated per record.
//
// # The region
//
// A pool is one anonymous mapping, cut into slabs of equal size. It is mapped,
// backed by huge pages where the kernel grants them, and faulted in by [New], so
// that its memory is spent (and a machine that is too small noticed) at start
// and not under load. It never moves and the garbage collector does not know
// it, which is what the kernel asks of a buffer that is registered with a ring.
//
//	0         Size       2*Size                       Count*Size
//	+---------+---------+---------+-- ... --+---------+
//	| slab 0  | slab 1  | slab 2  |         |  last   |
//	+---------+---------+---------+-- ... --+---------+
//	^ page-aligned; Size is a multiple of 4096, so every slab is as well
//
// # Who owns a slab
//
// A [Buf] counts its holders. TryGet and Get return it with one; [Buf.Hold] adds
// one and [Buf.Drop] takes one away. Whoever passes a Buf on either passes its
// own hold on (and does not touch the Buf again) or takes another for the
// receiver first. The last Drop returns the slab to the pool, and from then on
// its bytes belong to somebody else. In binaries built with -tags invariants
// the last Drop overwrites them with [Spoil], so a slice that was kept too long
// shows wrong bytes today and not in production.
//
// A Drop without a hold, or a Hold on a Buf that nobody holds, panics in every
// build: the next owner's bytes would be at stake.
//
// # When none is free
//
// [Pool.TryGet] returns nil at once. [Pool.Get] joins a first-in-first-out queue;
// the last Drop of a slab hands it straight to the head of the queue, so a late
// comer never overtakes. This is where back-pressure begins: a connection that
// waits here does not read its socket.
//
// Slabs that serve as a cache count as held. The Reclaim hook lets their owner
// give some up: a Get that found none free calls it from its own place in the
// queue, with no lock held, again and again until it has its slab or the hook
// returns false (then it waits for a Drop). The hook drops slabs, must not call Get
// on the same pool, and may be called by several goroutines at once.
package slab
