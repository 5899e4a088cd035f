// Package guest is what runs inside the power-cut machine's virtual machine: the
// workloads, and the line on which they talk with the host.
//
// # The line
//
// The second serial port carries lines of text. The guest says "ready"; the host
// answers with one [Config] as JSON; then the guest speaks, one verb and its words a
// line, and the host says "go" once, after "verified", when it has noted where a
// load begins:
//
//	ack STREAM N     the records up to N of the stream were acknowledged
//	have STREAM N    after a boot: the stream is whole up to N, and goes on from there
//	seen WHAT N      N times the boot has met what a cut can leave behind
//	verified         every acknowledged record was read back and is right
//	loading          the load begins
//	full             the load has no room left; cut whenever you like
//	formatted        the devices are ready for use
//	lost TEXT        an acknowledged record is missing or wrong, or one that was
//	                 never acknowledged is there in part: the verdict
//	broken TEXT      the workload could not do its work: trouble with the rig, or a
//	                 program that does not start
//
// # Streams and histories
//
// A stream is a sequence of records, numbered from 1, that survives as a prefix:
// the log of a device, or of a segment. What a record holds is a function of the
// seed, the stream, its number and the life that wrote it, so nobody has to keep
// the bytes to know them. A life is one boot with load. The host keeps each
// stream's history: which life wrote from which number on, and how far it was
// acknowledged; a record of an earlier life that lies beyond where a later one
// began is stale, and believing it is a loss like any other.
//
// # Workloads
//
// standin is a log of checksummed records on each raw drive, the smallest program
// whose promises a power cut can break; planted-early and planted-beside are its
// wrong twins.
//
// node is the redoubt binary. Format runs `redoubt format`. Every other boot runs
// `redoubt check`, which may find torn writes and gaps but no damage, then `redoubt
// node`, and reads all that was ever written, as of SCL and as of an older read
// point. A load opens each segment as a new writer does (fence, truncate), keeps
// several frames in flight on a connection for each drive, and tells VDL and PGMRPL
// with them; extents, log and ages are small, so that coalescing, map blocks,
// roots and trimming all happen meanwhile. A stream is a segment and its numbers are
// LSNs; see content.go for how LSNs and lives go together. planted-plp is its wrong
// twin: a node that was told that the drives have power-loss protection.
package guest
