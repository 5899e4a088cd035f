// Package node is a storage node: its devices, the way of a record from the
// socket to stable storage, and of a page from the device to the socket. This
// file is the pipe from top to bottom.
//
//	client ==TCP==> netserver.Conn          frames in aligned slabs
//	                  | Append                APPEND frame, in place
//	                  v
//	                handler: every batch checked against its segment
//	                  |
//	                  v   one lane for each device
//	                logqueue.Queue           admission, group commit
//	                  |
//	                  v
//	                segfile.Store ---------> blockdev.Device ---> ioring
//	                  |    SCL moved                |
//	                  v                             | durable
//	client <==ACK=== netserver.Conn <---------------+
//
//	                coalescer.Coalescer      log into pages, trim, scrub
//
// # Lanes
//
// A node's devices are its lanes. A segment lives on one of them for life; its
// client learns the lane with ATTACH, and an APPEND frame holds batches for
// segments of one lane only, since the frame becomes one run of that device's
// log.
//
// # Memory
//
// All that can be large is taken at the start and cut from Options.Memory: the
// slabs that frames arrive in (which double as a cache of the newest log), the
// index of records, page buffers, windows to read log back. When slabs run out,
// what the cache holds goes first; then sockets are not read.
//
// # Waiting
//
// The reader goroutine of a connection does the work of an append, and of a read
// as far as it needs no device; the device's completion does the rest. What may
// wait for a device for other reasons (create, fence, truncate, a page whose log
// has left memory) gets a goroutine of its own, bounded by the requests that a
// connection may have in flight.
package node
