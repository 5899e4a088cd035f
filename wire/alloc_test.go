package wire

import (
	"testing"

	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/redo"
)

// TestNoAllocations holds that neither side allocates for an entry, an ack, a
// page, or the frames around them.
func TestNoAllocations(t *testing.T) {
	check := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range append(appendPaths(check), answerPaths(check)...) {
		c.f() // the first decode may take memory for good
		if n := testing.AllocsPerRun(100, c.f); n != 0 {
			t.Errorf("%s: %v allocations", c.name, n)
		}
	}
}

type hotPath struct {
	name string
	f    func()
}

func appendPaths(check func(error)) []hotPath {
	var (
		buf    = make([]byte, 64<<10)
		batch  = goldenBatch(make([]byte, 200), 101, 100)
		a      AppendBuilder
		frame  []byte
		header Header
	)
	return []hotPath{
		{"build APPEND in place", func() {
			var b redo.Builder
			a.Reset(buf, MaxAlign)
			for range 32 {
				b.Reset(a.Next(), redoubt.VolumeID{1}, 3, 9, 100)
				b.Fill(101, 1, 0, 0, 100, 1, false)
				a.Commit(7, len(b.Finish()), 90, 80)
				a.Add(8, batch, 90, 80)
			}
			frame = a.Finish(5)
		}},
		{"check and walk APPEND", func() {
			var err error
			header, err = ParseHeader(frame, len(frame))
			check(err)
			check(header.CheckBody(frame[HeaderSize:header.Len]))
			it := Entries(frame[:header.Len], header.Aux)
			for it.Next() {
			}
			check(it.Err())
		}},
	}
}

func answerPaths(check func(error)) []hotPath {
	var (
		out   = make([]byte, 0, 4096)
		acks  []byte
		pages []byte
		descs = []PageDesc{{Page: 1, LSN: 5}, {Page: 2, Code: CodeAboveSCL}}
		read  Read
		ask   = Read{Handle: 7, Point: 9, Pages: []uint32{1, 2, 3}}
	)
	return []hotPath{
		{"build ACK", func() {
			acks = Begin(out)
			for i := range 32 {
				acks = AppendAck(acks, Ack{Handle: uint32(i), SCL: 7})
			}
			Finish(acks, KindAck, 32, 0)
		}},
		{"read ACK", func() {
			h, err := ParseHeader(acks, MaxFrameLimit)
			check(err)
			check(h.CheckBody(acks[HeaderSize:]))
			for i := range int(h.Aux) {
				AckAt(acks[HeaderSize:], i)
			}
		}},
		{"build PAGES", func() { pages = AppendPagesHead(out, 9, descs) }},
		{"read PAGES", func() {
			h, err := ParseHeader(pages, 0)
			check(err)
			check(h.CheckBody(pages[HeaderSize:]))
			for i := range int(h.Aux) {
				PageDescAt(pages[HeaderSize:], i)
			}
		}},
		{"READ", func() {
			b := AppendFrame(out, KindRead, 0, 1, &ask)
			b = Pad(b, HelloAlign)
			h, err := ParseHeader(b, MaxFrameLimit)
			check(err)
			check(read.Decode(b[HeaderSize:h.Len]))
		}},
	}
}

// BenchmarkAppendFrame is what an APPEND frame of 32 entries costs the node
// before it looks at the batches: twice around the entries, once for the sum.
func BenchmarkAppendFrame(b *testing.B) {
	var a AppendBuilder
	a.Reset(make([]byte, 64<<10), HelloAlign)
	batch := goldenBatch(make([]byte, 1024), 101, 900)
	for range 32 {
		a.Add(7, batch, 90, 80)
	}
	frame := a.Finish(5)
	b.ReportAllocs()
	for b.Loop() {
		h, err := ParseHeader(frame, len(frame))
		if err == nil {
			err = h.CheckBody(frame[HeaderSize:h.Len])
		}
		if err != nil {
			b.Fatal(err)
		}
		it := Entries(frame[:h.Len], h.Aux)
		for it.Next() {
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*32), "ns/entry")
}
