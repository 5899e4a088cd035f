package redo

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"
	"github.com/redoubt-storage/redoubt"
)

// A script is the state of one file of testdata: the batch built last, and a
// page that the records of the batches change.
type script struct {
	batch []byte
	page  []byte
}

// TestScripts tells the format as a conversation: batches are built, damaged,
// read and applied.
func TestScripts(t *testing.T) {
	datadriven.Walk(t, "testdata/scripts", func(t *testing.T, path string) {
		s := &script{page: make([]byte, redoubt.PageSize)}
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			switch d.Cmd {
			case "build":
				return s.build(t, d)
			case "read":
				return s.read(t, d, s.damaged(t, d))
			case "record":
				return s.record(t, d)
			case "apply":
				return s.apply(t, d)
			}
			t.Fatalf("%s: no such command %q", d.Pos, d.Cmd)
			return ""
		})
	})
}

func scriptVolume(t *testing.T, d *datadriven.TestData) redoubt.VolumeID {
	vol := byte(1)
	d.MaybeScanArgs(t, "vol", &vol)
	return redoubt.VolumeID{15: vol}
}

// build [vol=N] [pg=N] [epoch=N] [prev=N] [room=BYTES], one record a line:
//
//	write lsn=N page=N prev=N off=N data=HEX [cpl]
//	fill  lsn=N page=N prev=N off=N n=N byte=HEX [cpl]
//	move  lsn=N page=N prev=N off=N from=N n=N [cpl]
//	mark  lsn=N nanos=N vdl=N
func (s *script) build(t *testing.T, d *datadriven.TestData) string {
	var pg, epoch, prev uint64
	room := 4096
	d.MaybeScanArgs(t, "pg", &pg)
	d.MaybeScanArgs(t, "epoch", &epoch)
	d.MaybeScanArgs(t, "prev", &prev)
	d.MaybeScanArgs(t, "room", &room)
	var b Builder
	b.Reset(make([]byte, room), scriptVolume(t, d), redoubt.PGNo(pg), redoubt.Epoch(epoch), redoubt.LSN(prev))
	var out strings.Builder
	for line := range strings.Lines(d.Input) {
		if !addLine(t, &b, strings.TrimSpace(line)) {
			fmt.Fprintf(&out, "no room: %s", strings.TrimSpace(line)+"\n")
		}
	}
	s.batch = b.Finish()
	fmt.Fprintf(&out, "%d records, %d bytes\n", b.Count(), b.Len())
	if d.HasArg("hex") {
		out.WriteString(hex.Dump(s.batch))
	}
	return out.String()
}

func addLine(t *testing.T, b *Builder, line string) bool {
	kind, rest, _ := strings.Cut(line, " ")
	var (
		lsn, prev, off, from, n, nanos, vdl uint64
		page                                uint32
		data                                []byte
		cpl                                 bool
	)
	for _, f := range strings.Fields(rest) {
		k, v, _ := strings.Cut(f, "=")
		var err error
		switch k {
		case "cpl":
			cpl = true
		case "page":
			_, err = fmt.Sscan(v, &page)
		case "data", "byte":
			data, err = hex.DecodeString(v)
		default:
			p, ok := map[string]*uint64{"lsn": &lsn, "prev": &prev, "off": &off, "from": &from, "n": &n, "nanos": &nanos, "vdl": &vdl}[k]
			if !ok {
				t.Fatalf("line %q: no such field %q", line, k)
			}
			_, err = fmt.Sscan(v, p)
		}
		if err != nil {
			t.Fatalf("line %q: %v", line, err)
		}
	}
	l, pl := redoubt.LSN(lsn), redoubt.LSN(prev)
	switch kind {
	case "write":
		return b.Write(l, page, pl, int(off), data, cpl)
	case "fill":
		return b.Fill(l, page, pl, int(off), int(n), data[0], cpl)
	case "move":
		return b.Move(l, page, pl, int(off), int(from), int(n), cpl)
	case "mark":
		return b.Mark(l, int64(nanos), redoubt.LSN(vdl))
	}
	t.Fatalf("line %q: no such kind", line)
	return false
}

// damaged returns a copy of the batch with the bytes at byte=N replaced by
// set=HEX, cut to cut=N bytes, with add=N zeros behind it; resum makes the sum
// right again, so that the structure behind it is judged.
func (s *script) damaged(t *testing.T, d *datadriven.TestData) []byte {
	t.Helper()
	b := bytes.Clone(s.batch)
	if d.HasArg("byte") {
		var at int
		var set string
		d.ScanArgs(t, "byte", &at)
		d.ScanArgs(t, "set", &set)
		copy(b[at:], unhex(set))
	}
	cut, add := len(b), 0
	d.MaybeScanArgs(t, "cut", &cut)
	d.MaybeScanArgs(t, "add", &add)
	b = append(b[:cut], make([]byte, add)...)
	if d.HasArg("resum") {
		binary.LittleEndian.PutUint32(b, Sum(scriptVolume(t, d), b))
	}
	if wants := d.HasArg("byte") || d.HasArg("cut") || d.HasArg("add"); wants == bytes.Equal(b, s.batch) {
		t.Fatalf("%s: the damage changed nothing", d.Pos)
	}
	return b
}

// read [vol=N] [damage] prints what a reader makes of the batch.
func (s *script) read(t *testing.T, d *datadriven.TestData, b []byte) string {
	h, err := Verify(scriptVolume(t, d), b)
	if err != nil {
		return verdict(err)
	}
	var out strings.Builder
	fmt.Fprintf(&out, "pg %d epoch %d, LSNs %d to %d after %d, %d records\n", h.PG, h.Epoch, h.First, h.Last, h.Prev, h.Count)
	for it := Records(b[:h.Len], h); it.Next(); {
		fmt.Fprintf(&out, "%4d: %s\n", it.Offset(), show(&it.Record))
	}
	return out.String()
}

func show(r *Record) string {
	if r.Kind == Mark {
		nanos, vdl := r.MarkTime()
		return fmt.Sprintf("LSN %d mark nanos %d VDL %d", r.LSN, nanos, vdl)
	}
	s := fmt.Sprintf("LSN %d %v page %d bytes %d+%d link %d data %x", r.LSN, r.Kind, r.Page, r.Off, r.Len, r.Link, r.Data)
	if r.CPL {
		s += " cpl"
	}
	if r.Covers() {
		s += " covers"
	}
	return s
}

// verdict prints an error and which of the two kinds it is.
func verdict(err error) string {
	kind := "neither"
	switch corrupt, inv := errors.Is(err, redoubt.ErrCorrupt), errors.Is(err, redoubt.ErrInvalid); {
	case corrupt && inv:
		kind = "both"
	case corrupt:
		kind = "corrupt"
	case inv:
		kind = "invalid"
	}
	return fmt.Sprintf("%s: %v\n", kind, err)
}

// record off=N lsn=N [damage] decodes one record on its own.
func (s *script) record(t *testing.T, d *datadriven.TestData) string {
	var off int
	var lsn uint64
	d.ScanArgs(t, "off", &off)
	d.ScanArgs(t, "lsn", &lsn)
	r, err := RecordAt(s.damaged(t, d), off, redoubt.LSN(lsn))
	if err != nil {
		return verdict(err)
	}
	return show(&r) + "\n"
}

// apply changes the page by every record of the batch but the marks, whichever
// page they name, and prints the runs of equal bytes of the page.
func (s *script) apply(t *testing.T, d *datadriven.TestData) string {
	if d.HasArg("fresh") {
		clear(s.page)
	}
	h, err := Verify(scriptVolume(t, d), s.batch)
	if err != nil {
		return verdict(err)
	}
	for it := Records(s.batch, h); it.Next(); {
		it.Apply(s.page)
	}
	var out strings.Builder
	for i := 0; i < len(s.page); {
		j := i
		for j < len(s.page) && s.page[j] == s.page[i] {
			j++
		}
		fmt.Fprintf(&out, "%5d+%-5d %02x\n", i, j-i, s.page[i])
		i = j
	}
	return out.String()
}
