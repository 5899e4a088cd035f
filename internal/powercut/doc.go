// Package powercut is the power-cut machine: it runs a program in a virtual
// machine whose drives are served by this process, takes the power away in the
// middle of a write, and boots the machine again from what a real drive might
// have kept.
//
//	rig (this process)                          qemu
//	+-----------------------------+             +-------------------------------+
//	| Life                        |  line       | init (package main in ./init) |
//	|   oracle: what was          |<----------->|   guest.Workload              |
//	|   acknowledged, by whom     |  ttyS1      |     redoubt node, a client    |
//	|                             |             |                               |
//	| Disk  Disk  ... one Supply  |<----------->|   /dev/nvme0n1 /dev/nvme1n1   |
//	|   durable + unflushed       |  NBD, unix  |   emulated NVMe drives        |
//	+-----------------------------+             +-------------------------------+
//
// # The drive
//
// A [Disk] is bytes that are durable and, above them, the writes that have been
// received since and are not yet covered by a flush. A flush makes durable the
// writes that had been *answered* when the flush was received, and no others:
// whoever submits a flush beside the write that it should cover finds it
// uncovered here, as on a real drive.
//
// All disks of a machine hang on one [Supply], which counts writes and flushes
// over all of them. At the k-th write, or the k-th flush, it goes off: from that
// instant no disk answers anything any more. Each unflushed write is then
//
//	kept      all of it is there
//	dropped   none of it is
//	torn      some of its 512-byte sectors are, any subset
//
// by the seed, and the result is the disk of the next boot. Where unflushed
// writes overlap, kept sectors are applied in the order in which they were
// received; since any of them may be dropped, every version of a sector since its
// last durable one can be what is found, which is all that reordering could do.
//
// # A life
//
// One seed is one [Life]: boot, format; then some times over boot, verify, load,
// cut; and at last boot and verify. The guest reports each acknowledgement over a
// serial line at once, and the host remembers it, so the host alone decides what
// must be there after the cut. Acks that come in for a moment after the cut
// count: an honest program had those bytes on stable storage before, and a
// dishonest one is caught by them.
//
// The seed fixes what is written, when the power goes and what becomes of each
// unflushed write; the guest's timing is its own, so a replay repeats the
// kind of cut rather than its every byte. For exactness a failed life leaves the
// post-cut images and the oracle in a directory, from which the verdict is
// reached again without any chance in it.
//
// # Planted bugs
//
// A machine that finds nothing may be blind. Two workloads acknowledge too early,
// before the flush and beside it, a [Disk] can be told to lie: to answer flushes and
// do nothing, and the real node can be told to trust a drive's cache. Each must be
// caught, in every run of the rig. A campaign in which no cut took anything away fails as
// well, and a long one in which no boot has met what the load is there for.
package powercut
