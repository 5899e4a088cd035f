// Package peer is the client's end of one connection to a storage node:
// requests are pipelined, answers come in any order, acks are cumulative.
//
// # Three ways to ask
//
// Append sends a frame that the caller built with [wire.AppendBuilder]; what
// comes of it arrives through [Options.OnAck] and [Options.OnError]. Read asks for
// pages, into the caller's memory, and calls back. The other requests are few
// and rare, so they are plain calls that wait under a context.
//
// # Who calls whom
//
// One goroutine, the reader, runs every callback, one after the other: it must
// not wait for an answer of the same connection (a plain call, Close), or it
// waits for itself. It may call Append and Read. A callback is short: what
// others ask for meanwhile is kept back until it returns.
//
// No goroutine is there to write. A request is written by whoever makes it; what
// is asked for while a write is under way goes out with the next one, and what
// is asked for while the reader is busy, before it waits again. Append writes its frame itself, so it blocks when TCP
// pushes back: the node has no memory for more. One goroutine sends appends, or
// their order is nobody's.
//
// # Exactly once
//
// A request that was accepted (Read returned nil, the call began) is answered
// exactly once: by the node, or with the error that ended the connection. Then
// OnDown is called, once, as the last callback. Whether a connection is made
// anew is the caller's decision, and what had no answer may or may not have
// happened; acks tell.
//
// # Bounds
//
// At most Options.InFlight requests wait for an answer: Read returns
// [redoubt.ErrBusy] past that, and a call waits. Nothing is allocated for an
// append, an ack or a read once the connection has seen a few.
package peer
