package netserver

import "sync/atomic"

// Stats are counts since the server started, but for Active.
type Stats struct {
	Accepted     uint64 // connections accepted
	Refused      uint64 // of these, turned away: too many, or shutting down
	Closed       uint64 // of these, gone
	Active       uint64 // connections that are open now
	AcceptErrors uint64 // accept failed: out of descriptors

	BadHellos   uint64 // closed before a valid HELLO was complete
	BadFrames   uint64 // closed because a frame broke the format or a limit
	SlowSenders uint64 // closed because a frame took too long to arrive
	SlowReaders uint64 // closed because answers were not taken

	Reads         uint64 // reads from sockets that returned bytes
	BytesIn       uint64
	AppendFrames  uint64 // handed to the handler
	AppendEntries uint64
	AppendBytes   uint64 // of AppendFrames, padding included
	Requests      uint64 // other frames after HELLO
	SlabWaits     uint64 // times a reader found no slab free: back-pressure
	SlabsRobbed   uint64 // slabs taken from connections that had no use for them

	Writes    uint64 // writes to sockets
	BytesOut  uint64
	AckFrames uint64
	Acks      uint64 // acks in them; more calls of Conn.Ack than this were merged
	Answers   uint64
	Errors    uint64 // of the answers, ERROR
	Pages     uint64 // pages in PAGES frames
}

// counters is Stats while it changes.
type counters struct {
	accepted, refused, closed, acceptErrors                                                    atomic.Uint64
	badHellos, badFrames, slowSenders, slowReaders                                             atomic.Uint64
	reads, bytesIn, appendFrames, appendEntries, appendBytes, requests, slabWaits, slabsRobbed atomic.Uint64
	writes, bytesOut, ackFrames, acks, answers, errors, pages                                  atomic.Uint64
}

// Stats returns the counts. They are read one after the other, so a sum may be
// off by what happens meanwhile.
func (s *Server) Stats() Stats {
	c := &s.counters
	s.mu.Lock()
	active := len(s.conns)
	s.mu.Unlock()
	return Stats{
		Accepted: c.accepted.Load(), Refused: c.refused.Load(), Closed: c.closed.Load(), Active: uint64(active),
		AcceptErrors: c.acceptErrors.Load(),
		BadHellos:    c.badHellos.Load(), BadFrames: c.badFrames.Load(),
		SlowSenders: c.slowSenders.Load(), SlowReaders: c.slowReaders.Load(),
		Reads: c.reads.Load(), BytesIn: c.bytesIn.Load(),
		AppendFrames: c.appendFrames.Load(), AppendEntries: c.appendEntries.Load(), AppendBytes: c.appendBytes.Load(),
		Requests: c.requests.Load(), SlabWaits: c.slabWaits.Load(), SlabsRobbed: c.slabsRobbed.Load(),
		Writes: c.writes.Load(), BytesOut: c.bytesOut.Load(), AckFrames: c.ackFrames.Load(), Acks: c.acks.Load(),
		Answers: c.answers.Load(), Errors: c.errors.Load(), Pages: c.pages.Load(),
	}
}
