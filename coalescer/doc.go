// Package coalescer is steps 5, 7 and 8 of a node for one device: it folds the
// records of the hot log into pages, keeps the log's tail moving, and reads
// everything again to find what has rotted.
//
// A [Folder] does the first two and a [Scrubber] the third, each one bounded
// piece of work at a time: their Pass methods take the clock as an argument,
// start nothing and wait only for the device and for memory. A [Coalescer] is
// the shell around them: two goroutines that call Pass and sleep in between.
//
// # A run
//
// A run folds up to RunPages pages of one segment:
//
//	pick ---> plan ---> read bases, log ---> apply, sum ---> alloc ---> write ---> map block ---> commit
//	           pin                                                     durable       durable       unpin
//
// The records of all pages of a run are applied in one sweep through the log, in
// LSN order, so each batch is fetched once: from memory while it is there, else
// from the device in pieces that hold what lies near. New versions stand side by
// side in one slab and become few large writes into free slots. Only when these
// are on stable storage the map block is written that makes them count, and only
// when that is, what they replace is free. So whatever is cut short, either
// version is whole and found; what was allocated is given back.
//
// A base that fails its sum, or can't be read, is left out of its run and
// reported; so is damaged log. The segment is tried again later, with a growing
// pause, and holds up no other.
//
// # What is due
//
// Every Survey the folder looks at all segments and brings their index up to date,
// while the records are still in memory. Then a page is due
//
//   - when its chain is long: LongChain records (an option of the store);
//   - when its oldest record is older than MaxAge. The log has no times in it, so
//     a small ring of (moment, SCL) for each segment says which LSN was here when.
//     What is half as old goes with it, so that pages come in large runs;
//   - when the log is past SoftDebt and the oldest extent needs it.
//
// It is never the length of the whole log that decides: a page that is hot is
// folded for its own chain, a page that is cold waits for the age or the space.
// Segments take turns.
//
// # The tail
//
// The log gives back extents oldest first. What keeps the oldest one, past
// SoftDebt, is dealt with in this order:
//
//	records that may be folded             fold them, the oldest of that segment
//	records that may not (PGMRPL or VDL    write their blocks again at the head,
//	stand still, a gap, a holder such as   if the extent is less than half full of
//	the archive, damage)                   them; less than 7/8 past MoveDebt
//	a root                                 write a new one
//
// Records that may not be folded and fill the extent stay where they are: to
// copy them would win nothing. Then the log fills, and appends wait.
//
// # Pace
//
// Background work is counted in bytes read and written. At rest it goes at
// IdleRate; from SoftDebt to FullDebt the rate rises to MaxRate, where it stays.
// The foreground is slowed down from FullDebt on by package logqueue, so there is a
// debt at which both go equally fast. The scrub goes at ScrubRate, less as debt
// rises, and rests at FullDebt.
package coalescer
