// Package blockdev owns one device: a raw block device, a loop device or a file
// that is written in full. It formats it, opens it with O_DIRECT and a lock,
// checks that it is the device it should be, gives its extents out and takes
// them back, and writes so that what it reports done survives a power cut.
//
// # The device
//
//	0          4 KiB      64 KiB     68 KiB     128 KiB            data offset                end
//	+----------+----------+----------+----------+------------------+--------+--------+-- --+--+
//	| super A  |  unused  | super B  |  unused  |   extent table   | ext. 0 | ext. 1 | ... |  |
//	+----------+----------+----------+----------+------------------+--------+--------+-- --+--+
//	                                                               ^ a multiple of 1 MiB
//
// Integers are little-endian. A sum is a CRC-32C (Castagnoli). Reserved bytes
// are zero, and checked to be.
//
// # Superblock
//
// Two copies of 4096 bytes, written in turn: the one of generation g stands in
// copy A if g is even and in copy B if it is odd. The newest whole one counts.
// All that changes lies in the first sector, so a torn write leaves the old
// superblock or the new one; a copy that fails its sum was damaged.
//
//	 0           8     12      16       20       24         28   30   32
//	+-----------+-----+-------+--------+--------+----------+----+----+
//	| magic     | crc |version| compat |rocompat| incompat |pos |cnt |
//	+-----------+-----+-------+--------+--------+----------+----+----+
//	 32                      48                     64               80
//	+-----------------------+----------------------+-----------------+
//	| cluster ID            | node ID              | device ID       |
//	+-----------------------+----------------------+-----------------+
//	 80           88           96           104          112        120
//	+------------+------------+------------+------------+------------+
//	| generation | created    | clean      | table sum  | size       |
//	+------------+------------+------------+------------+------------+
//	 120          128          136     140      144      148        4096
//	+------------+------------+-------+--------+--------+------------+
//	| table      | data       | block | extent | extents| zeros      |
//	+------------+------------+-------+--------+--------+------------+
//
//	magic      "RDBTSUPR"
//	crc        of bytes 12..4096. Magic, crc and version stay where they are in
//	           every version of the format
//	version    1
//	compat     feature flags: unknown ones are ignored, and kept together with
//	           the bytes from 148 on, which may be other than zero then
//	rocompat   unknown ones allow reading only
//	incompat   unknown ones refuse the device
//	pos, cnt   u16, place among the node's devices, from 0, and their number
//	created    when it was formatted, Unix seconds
//	clean      log position of a clean shutdown, 0: not shut down cleanly
//	table sum  sum of the sequences of all table pages at a clean shutdown
//	size       bytes of the device when it was formatted
//	table      byte offset of the extent table; data: of extent 0
//	block      bytes of a logical block, 512 to 4096; no write is smaller
//	extent     bytes of an extent; extents: their number
//
// # Extent table
//
// The table has P = extents/120, rounded up, pages. Page p has two slots of
// 4096 bytes, at table + p*4096 and table + (P+p)*4096. The version of the page
// with sequence s stands in the first slot if s is even and in the second if it
// is odd; versions are written in turn and count up by one, from 2. So a change of an
// extent is one durable write of 4096 bytes, and it leaves the version before
// it alone.
//
// A slot is eight sectors of 512 bytes. Each has a header and 15 entries, and
// each is sealed by itself:
//
//	 0     4      8          16                 24     25    28      32
//	+-----+------+----------+------------------+------+-----+-------+
//	| crc | page | sequence | super g.         |sector|zeros| whole |
//	+-----+------+----------+------------------+------+-----+-------+
//	 32      36     37      40      44      48         56      64
//	+-------+------+-------+-------+-------+----------+-------+
//	| gen   | role | zeros | owner | zeros | seq      | zeros |  15 times
//	+-------+------+-------+-------+-------+----------+-------+
//
//	crc      of the 16 bytes of the device ID, which are not stored, and of
//	         bytes 4..512: bound to device, page and sector
//	super g. generation of the superblock when the slot was written: a
//	         superblock that is older was put back from a copy
//	whole    sum of the entries of all eight sectors, in order
//	gen      how many times the extent was given out; never reused
//	role     0 free, 1 log, 2 pages
//	owner    tag of a segment, 0: common to all
//	seq      order among the extents of the log; 0 in free ones
//
// # Torn or damaged
//
// Any subset of a slot's sectors may be new after a power cut. Sectors are
// sealed one by one so that a tear can be told from damage: if one sector of a
// slot carries an older sequence than the other slot, the newer write never
// became whole, so it was never acknowledged, and the other slot is the truth.
// So it is if sectors carry one sequence and differ in super generation or
// whole: then a power cut tore a write, and another one the write that was to
// replace it. The field whole is there for this. Without it two torn halves of
// two writes with one sequence could make a slot that looks whole and is
// neither. If no sector says so, the bad slot may have been the newest version.
// Taking the other one would silently forget an extent that was given out and
// its generation would be given out again, so the device is refused with
// redoubt.ErrCorrupt. Opened for reading only, it is read as far as it goes,
// and [Device.CheckTable] lists what is wrong.
//
// A lost write shows too: each table and superblock write is read back and
// compared before it counts; slots of one page that are not consecutive, and a
// table that is not the one of a clean superblock, are refused.
//
// # Durable
//
// A write is reported done when it is on stable storage. How that is reached is
// the device's durability:
//
//	fua    each write carries RWF_DSYNC
//	flush  plain writes, and one flush for the device whenever none is running.
//	       It covers the writes that completed before it was submitted; one
//	       that completes while it runs waits for the next
//	plp    the operator vouches for power-loss protection: completion is enough
//
// A failed write or flush fails the device, for good: nobody knows what is on
// it then. Every later write gets redoubt.ErrDeviceFailed with the first cause,
// and so does every write in flight, even one that would have succeeded. Reads
// go on.
//
// Opening for writing begins with a flush. What a process wrote before it was
// killed may still be in the device's cache only, and whoever recovers from it
// builds on what may vanish with the next power cut.
//
// # Clean
//
// [Device.MarkClean] notes the log position of a clean shutdown, and refuses
// writes from then on; [Device.ClearClean] allows them again. A device that is
// clean when it is opened is not written to before ClearClean was called:
// opening by itself changes nothing, so that a device of somebody else stays as it
// was. If one superblock copy is damaged the other one's clean field
// proves nothing, and the device counts as not clean.
package blockdev
