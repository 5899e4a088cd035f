// Package logqueue is steps 1 and 2 of a node for one device: a bounded queue
// of runs, group commit of them into the hot log, and the acknowledgement when
// they are on stable storage.
//
// # Group commit without a timer
//
// While a write is on its way to the device, what arrives next gathers for the
// following one. Nobody waits for company: an idle device takes the first run
// at once, a busy one takes all that has gathered in one piece.
//
//	connections          queue                      device
//	  Append ---> Admit, pending ---> Place ---> write, durable
//	                  ^                              |
//	   acks <--- Moved +--------- Complete <---------+
//
// There is no goroutine on this path: the connection's reader submits when the
// device is idle, and the device's completion submits what has gathered since.
//
// # Order
//
// Admission, with its check of the epoch, and the place in the queue are one
// step under the queue's mutex. So when [Queue.Change] installs an epoch and
// queues its block, every older batch that was admitted stands before that
// block in the log, and, the block being a barrier, is durable or failed before
// anyone is told of the epoch.
//
// # Back-pressure
//
// Append makes its caller wait, and with it a socket, in three cases: the queue
// holds MaxQueueBytes; the log's debt (its space, or its records that are not in
// pages yet) is past SoftDebt, and then for as long as the rate that coalescing
// drains at, divided by how far the debt is into its upper range, asks for: at
// the top of the range exactly the drained rate is let in, half-way twice that,
// so there is no cliff; or the log has no room left at all. The last is refused
// with ErrFull when nothing was freed for FullTimeout. What the node itself
// writes to make room is let in always, into extents that are kept for it.
package logqueue
