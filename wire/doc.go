// Package wire is the framed protocol between a client and a storage node, over
// one TCP connection: frames, their kinds, the limits, cumulative acks. Bytes in,
// bytes out; no socket. docs/wire-format.md shows a conversation byte by byte;
// testdata/golden has a frame of every kind.
//
// # Frame
//
// Everything on the connection is a frame: a header of 32 bytes and a body.
// Integers are little-endian. Reserved fields (rsv) are zero, and a frame in
// which one isn't is refused. LSN 0 means none.
//
//	 0     2    3    4     8     12    16        24    28    32
//	+-----+----+----+-----+-----+-----+---------+-----+-----+------+
//	| RB  |ver |kind| crc | len | aux |   req   | sum |flags| body |
//	+-----+----+----+-----+-----+-----+---------+-----+-----+------+
//
//	RB     the bytes 0x52 0x42
//	ver    1
//	kind   see below; bit 7 is set in frames from the node
//	crc    CRC-32C (Castagnoli) of bytes 0..4 and 8..32 of the header
//	len    of the frame in bytes, header included, padding excluded
//	aux    number of entries (APPEND), of acks (ACK), of pages (PAGES); else 0
//	req    request ID, the client's choice; the answer has the same one. 0 in
//	       what answers no request: ACK, BYE
//	sum    CRC-32C of the body; of an APPEND frame, of its entry headers only, one
//	       after the other; of a PAGES frame, of its descriptors only. Batches
//	       and pages have sums of their own, which go with them to the device
//	flags  0
//
// A client pads each frame with zeros to a multiple of the alignment, 512 until
// WELCOME says otherwise; the node doesn't pad. So the node reads large pieces
// of the stream straight into memory from which its device can write: a frame
// begins and ends at a multiple of the device's logical block, and an APPEND
// frame is written as it arrived, with its headers replaced in place.
//
// # Kinds
//
//	0x01 HELLO     version range, name           -> WELCOME
//	0x02 CREATE    a segment                     -> DESCRIPTION
//	0x03 DELETE    a segment                     -> OK
//	0x04 ATTACH    a segment to the connection   -> ATTACHED
//	0x05 DESCRIBE  a segment                     -> DESCRIPTION
//	0x06 LIST      the node's segments           -> LISTED
//	0x07 APPEND    batches                       -> ACK, some time
//	0x08 READ      pages at a read point         -> PAGES
//	0x09 FLOOR     VDL and PGMRPL                -> OK
//	0x0a FENCE     a volume epoch                -> DESCRIPTION
//	0x0b TRUNCATE  a range                       -> DESCRIPTION
//	0x0c TAIL      what is held above an LSN     -> TAILED
//	0x0d PING                                    -> OK
//	0x81 WELCOME   0x82 OK   0x83 ERROR   0x84 ATTACHED   0x85 DESCRIPTION
//	0x86 LISTED    0x87 ACK  0x88 PAGES   0x89 TAILED     0x8a BYE
//
// Each request but APPEND gets exactly one answer: the one in the table, or
// ERROR. Answers come in any order, and so may the effects: a client that needs
// one request before another waits for its answer. The batches of a connection
// are taken in the order in which they were sent.
//
// # A connection
//
// The client sends HELLO first, padded to 512, and nothing more until WELCOME is
// there. WELCOME states the limits; a frame beyond them, or one that breaks the
// format, is answered with ERROR and the connection is closed.
//
//	HELLO                               WELCOME
//	 0   1   2    4                      0   1     2   4     8          12          16
//	+---+---+----+------------+         +---+-----+---+-----+----------+-----------+----
//	|min|max|rsv | name ...   |         |ver|lanes|rsv|align|max frame | max pages | ..
//	+---+---+----+------------+         +---+-----+---+-----+----------+-----------+----
//	                                     16              20            24     40        56
//	min, max  versions the client       +---------------+-------------+------+---------+---------+
//	          speaks                    | max in flight | max handles | node | cluster | name ... |
//	name      UTF-8, to the end of      +---------------+-------------+------+---------+---------+
//	          the frame, at most 255
//
//	ver            the version spoken from here on
//	lanes          a lane is one device of the node; they are numbered from 0
//	align          of the client's frames: a power of two, 512 to 4096
//	max frame      bytes of a client's frame, padding included, and of a node's
//	               frame other than PAGES
//	max pages      in one READ, at most 64
//	max in flight  requests without an answer; past it the node stops reading.
//	               APPEND doesn't count
//	max handles    segments attached by one connection
//	node, cluster  IDs, 16 bytes
//
// No common version: ERROR invalid, where a and b are the node's lowest and
// highest. BYE, without a body, says that the node is shutting down: it reads
// nothing more, answers what it has taken, and closes. Reconnect later.
//
// # Append
//
// The body is a sequence of entries, each at a multiple of 8 in the frame: an
// entry header, one batch (package redo) and zeros to the next multiple of 8,
// which count in len. All entries of a frame are for segments of one lane.
//
//	 0        4     8       16      24
//	+--------+-----+-------+-------+-----------------+-------+
//	| handle | len |  vdl  | floor | batch, len bytes | zeros |
//	+--------+-----+-------+-------+-----------------+-------+
//
//	handle  of the segment, from ATTACHED
//	vdl     VDL as the client knows it; 0: nothing new
//	floor   PGMRPL of the segment's protection group; 0: nothing new
//
// There is no answer to an APPEND, but sooner or later an ACK, one for all
// segments of the connection that moved, whatever the number of batches. An ACK
// is sent when the bytes are on stable storage. Its body is aux times
//
//	 0        4       8       16
//	+--------+-------+-------+
//	| handle | flags |  scl  |     flags 0
//	+--------+-------+-------+
//
// A batch above a gap is kept and not acknowledged until the gap is closed. A
// refused batch is answered with ERROR under the frame's request ID, with the
// index of the entry; the other entries stand. Entry 0xffffffff: none does.
//
// # Segments
//
//	CREATE     0 segment 16 | 16 volume 16 | 32 pg u32 | 36 pages u32 | 40 kind u8 | 41 lane u8
//	           42 rsv 6 | 48 volume epoch u64 | 56 membership epoch u64 | 64 geometry epoch u64
//	DELETE     0 segment 16 | 16 volume epoch u64 | 24 membership epoch u64
//	ATTACH     0 segment 16 | 16 volume 16 | 32 volume epoch u64 | 40 membership epoch u64
//	ATTACHED   0 handle u32 | 4 lane u8 | 5 rsv 3 | 8 description 192
//	DESCRIBE   0 segment 16
//	LIST       0 after segment 16 | 16 max u32 | 20 rsv u32
//	LISTED     0 more u32 | 4 n u32 | 8 n x { 0 segment 16 | 16 volume 16 | 32 pg u32 | 36 kind u8
//	           37 lane u8 | 38 state u8 | 39 unknown u8 | 40 scl u64 }
//
//	pages    of the protection group, 1024 to 4194304
//	kind     1 full, 2 tail
//	lane     255 in CREATE: the node chooses
//	handle   dense from 0, for the life of the connection
//	max      of segments (LIST) or records (TAIL); the node may send fewer; 0: its choice
//	more     1: there are further ones; ask again above the last
//
// DESCRIPTION, and the description in ATTACHED:
//
//	  0 segment 16   16 volume 16   32 device 16
//	 48 pg u32   52 pages u32   56 kind u8   57 lane u8   58 state u8   59 unknown u8   60 rsv u32
//	 64 volume epoch u64   72 membership epoch u64   80 geometry epoch u64
//	 88 scl u64   96 highest u64   104 vdl u64   112 floor u64
//	120 coalesced u64   128 trimmed u64   136 unknown above u64
//	144 log bytes u64   152 dirty pages u64   160 page count u64
//	168 truncation epoch u64   176 from u64   184 to u64
//
//	state          bit 0: the device failed; bit 1: appends are refused, no space
//	unknown        0: what the segment doesn't hold it never had, a definite no.
//	               1 torn, 2 corrupt: LSNs above "unknown above" that it doesn't
//	               hold are UNKNOWN, which is not a no
//	highest        highest LSN held, behind gaps too
//	coalesced      every record at or below is in the pages
//	trimmed        every record at or below may be gone from the log
//	truncation     the range (from, to], void for records of a lower epoch; 0: none
//
// # Reading, fencing, the tail
//
//	READ      0 handle u32 | 4 n u32, 1 to 64 | 8 point u64 | 16 need u64 |
//	          24 n x page u32. need: the group's last LSN at or below point,
//	          which the segment's SCL must reach; 0: point itself
//	PAGES     n x { 0 page u32 | 4 code u32 | 8 lsn u64 | 16 sum u32 | 20 rsv u32 }
//	          then 16 KiB for each with code 0, in the same order
//	FLOOR     0 handle u32 | 4 rsv u32 | 8 vdl u64 | 16 floor u64
//	FENCE     0 segment 16 | 16 epoch u64
//	TRUNCATE  0 segment 16 | 16 epoch u64 | 24 from u64 | 32 to u64, from < to
//	TAIL      0 handle u32 | 4 max u32 | 8 above u64
//	TAILED    0 scl u64 | 8 more u32 | 12 n u32 | 16 n x { 0 lsn u64 | 8 flags u32 | 12 rsv u32 }
//
//	page   index of the page inside its protection group
//	code   0, or why this page isn't here: an error code
//	lsn    of the last record applied to the page, 0 for a page of zeros that
//	       was never written; with code below floor PGMRPL, with above SCL the SCL
//	sum    CRC-32C of volume ID, page number in the volume as u64 (pg * pages +
//	       page), lsn as u64, and the page
//	flags  bit 0: the record is a CPL. TAILED lists, in LSN order, records that
//	       the segment holds completely, those behind gaps included
//
// # Errors
//
//	ERROR     0 code u32 | 4 entry u32 | 8 a u64 | 16 b u64 | 24 message, UTF-8, at most 1024
//
//	code              entry 0xffffffff unless it is about one entry of an APPEND
//	 1 corrupt        acknowledged bytes can't be read back; a..b: the LSNs, if known
//	 2 fenced         a: volume epoch held, b: membership epoch held
//	 3 busy           a bounded queue is full: back off, retry
//	 4 full           no space
//	 5 not found      no such segment, handle or page
//	 6 exists         the segment exists with other properties
//	 7 below floor    a: PGMRPL, b: SCL
//	 8 above SCL      a: PGMRPL, b: SCL
//	 9 invalid        the request breaks the format or the protocol
//	10 device failed  nothing on this device is trusted any more
//	11 closed         the node is shutting down: reconnect
//	12 foreign        another cluster, node, volume
//	13 internal       none of these
//
// A code is a kind of error of package redoubt, which [Error] matches; codes that
// a client doesn't know it treats as internal.
//
// # Golden bytes
//
// PING with request ID 0x1817161514131211, before the padding; and the OK:
//
//	5242010d e2cc26c6 20000000 00000000 1112131415161718 00000000 00000000
//	52420182 6f75c525 20000000 00000000 1112131415161718 00000000 00000000
package wire
