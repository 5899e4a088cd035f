// Package netserver is the node's side of the sockets: it accepts connections,
// turns their bytes into frames inside slabs, hands the frames to a [Handler],
// and sends what comes back: answers in any order, and acks that it merges.
//
// # The way in
//
// Each connection has a reader goroutine. It reads as much as the socket has,
// through Go's netpoller, straight into a slab of the pool; the frames are
// parsed where they lie and handed over without a copy. From there the device
// writes them: the handler holds the slab ([Frame.Hold]) until it is done.
//
//	0                                readEnd              Size
//	+-------+-------+---------+---------+--------------------+
//	| frame | frame | frame   | frame       |                |  one slab
//	+-------+-------+---------+---------+--------------------+
//	                                        ^ reading stopped here
//
// A frame lies in one slab, always, and begins at a multiple of the alignment,
// because the sender pads. Reading stops at readEnd (the slab's size less the
// largest frame) or, when a frame begins before and ends behind it, exactly at
// the end of that frame; then the next slab is taken. So no payload moves, at the
// price of the end of each slab.
//
// A connection takes its first slab when a valid frame header is there to be
// read (it peeks), not before: ten thousand idle connections hold none. While it
// waits between two frames its slab is parked, where any reader that finds the
// pool empty, or the watcher a moment later, takes it away.
//
// # Back-pressure
//
// The handler's Append may block; no slab may be free; the answers pending may
// have reached the limit of the WELCOME. In each case the reader stops reading,
// TCP tells the client, and nothing grows. A pending answer is one whose request
// was handed over and whose last byte isn't written yet, so a client that sends
// and doesn't read stops at the limit too.
//
// # The way out
//
// Each connection has a writer goroutine. It sleeps until there is an ack or an
// answer; what gathers while a write is under way goes out with the next one.
// [Conn.Ack] marks the handle and wakes the writer: one ACK frame then covers all
// handles that moved, and of several acks of a handle the highest counts. Pages
// go out by scatter-gather from where they are.
//
// # Bad clients
//
// Nothing of a frame is used before its header's crc is right, nothing of a
// length before it is within the limits, nothing of the body before its sum and
// structure are right. A broken frame is answered with ERROR if its header was
// whole, and the connection is closed, logged and counted. HELLO must be there
// within HelloTimeout, a frame complete within FrameTimeout, an answer taken
// within WriteTimeout. Connections beyond MaxConns are turned away.
//
// # Goroutines
//
//	goroutine  started by  ends when                             waited for by
//	accept     Serve       the listener is closed                Shutdown
//	watch      Serve       Shutdown is done with the connections Shutdown
//	reader     accept      its connection ends                   Shutdown
//	writer     reader      reader ended and nothing is pending,  reader
//	                       or the connection is dead
package netserver
