// Package bench puts load on devices and nodes, replays traces, and sets what it
// measures against the device's own limit and against other logs, in the same
// run. It is the library behind "redoubt bench" and "redoubt demo".
//
//	load     what it is                                      against
//	device   the I/O engine alone                            fio on the same file
//	append   writers of small records over TCP               the engine, other logs
//	read     random pages over TCP, every byte checked       fio
//	replay   the redo of a real database run                 the volume's SHA-256
//	all      all of these in turns, as a table
//
// # A load has no goroutine for a writer
//
// 256 writers that each wait for the ack of their own record are counters, not
// goroutines: an ACK frame frees writers, and when it has been read to its end,
// each freed writer's next record goes out, for each lane one APPEND frame with
// one batch for each segment. Nothing is allocated for a record. Otherwise the
// generator, which shares the machine with the node, would measure itself.
//
// With a rate, send n of a segment is due at a moment that is fixed beforehand,
// and its latency counts from that moment, whether or not a writer was free: a
// stall shows in every send that it made late (no coordinated omission).
//
// # A volume of one copy
//
// Replay is a writer as 02 has it, with one segment for each protection group.
// LSNs are dense over the volume. The trace's pages come first, and behind them
// one control page, in a protection group of its own if need be:
//
//	page     0 ............................ n-1 | n       | unused
//	         the trace's                        | control | to the end of the group
//
// Each mini-transaction ends with a record for the control page, its CPL:
//
//	 0          8             16        24
//	+----------+-------------+---------+
//	| RDREPLAY | next event  | commits |
//	+----------+-------------+---------+
//
//	next event  of the trace, from 0, to follow this mini-transaction
//	commits     of the trace so far
//
// So the volume itself says, at any VDL, how far the trace has come, and a replay
// that is started anew goes on from there. It opens the volume as a new writer
// does: the next epoch on all segments; their SCLs, and what they hold above the
// highest VDL that any of them was told; VCL, VDL; the range (VDL, VDL+LAL] void on
// all of them; LSNs go on behind it. VDL is told to a segment before the range
// is, so a segment that knows of a range knows of the VDL below it, and the
// LSNs that are jumped over are always explained by the range that the segments
// hold now.
//
// The identities of volume and segments are hashes of the volume's name and
// geometry, so they are found again without being kept anywhere.
//
// # Trace
//
// gzip over the whole; integers are little-endian.
//
//	header   8 bytes "RDTRACE1", u32 page size in bytes (16384), u64 pages of the volume
//	then, one after the other:
//	WRITE    u8 1, u64 page, u16 offset, u16 length, then length bytes
//	ZERO     u8 2, u64 page, u16 offset, u16 length (0 means 16384)
//	COMMIT   u8 3          all before it become visible together, durably
//	END      u8 4, u64 records (WRITE and ZERO), u64 commits, 32 bytes SHA-256 of
//	         the volume at the end; nothing follows
//
// offset + length is at most 16384. A page that no record names is zeros.
package bench
