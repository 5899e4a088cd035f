package wire

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"reflect"
	"strconv"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"
	"github.com/redoubt-storage/redoubt"
)

// TestScripts damages golden frames and tells what a receiver makes of them.
//
//	frame KIND [atN=HEX]... [cut=N] [add=N] [limit=N] [sum] [crc]
//
// replaces the bytes at N, cuts the frame, appends zeros; sum makes the body's sum
// right again, crc the header's, so that what lies behind them is judged.
func TestScripts(t *testing.T) {
	datadriven.Walk(t, "testdata/scripts", func(t *testing.T, path string) {
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			switch d.Cmd {
			case "frame":
				return receive(t, d)
			case "build":
				return build(t, d)
			}
			t.Fatalf("%s: no such command %q", d.Pos, d.Cmd)
			return ""
		})
	})
}

func kindNamed(t *testing.T, name string) Kind {
	for _, k := range kinds() {
		if k.String() == name {
			return k
		}
	}
	t.Fatalf("no kind %q", name)
	return 0
}

func receive(t *testing.T, d *datadriven.TestData) string {
	kind := kindNamed(t, d.CmdArgs[0].Key)
	good := goldenFrame(t, kind)
	h, err := ParseHeader(good, MaxFrameLimit)
	if err != nil {
		t.Fatal(err)
	}
	frame := bytes.Clone(good[:h.Len])
	for _, arg := range d.CmdArgs {
		if at, ok := strings.CutPrefix(arg.Key, "at"); ok {
			copy(frame[number10(t, at):], unhex(t, arg.Vals[0]))
		}
	}
	cut, add, limit := len(frame), 0, 512<<10
	d.MaybeScanArgs(t, "cut", &cut)
	d.MaybeScanArgs(t, "add", &add)
	d.MaybeScanArgs(t, "limit", &limit)
	frame = append(frame[:cut], make([]byte, add)...)
	if bytes.Equal(frame, good[:h.Len]) && !d.HasArg("limit") {
		t.Fatalf("%s: the damage changed nothing", d.Pos)
	}
	reseal(frame, kind, d.HasArg("sum"), d.HasArg("crc"))
	return judge(t, frame, limit)
}

func number10(t *testing.T, s string) int {
	n, err := strconv.Atoi(s)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func unhex(t *testing.T, s string) []byte {
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// reseal makes the sums of a damaged frame right.
func reseal(frame []byte, kind Kind, sum, crc bool) {
	le := binary.LittleEndian
	if sum {
		body := frame[HeaderSize:]
		switch kind {
		case KindAppend:
			var heads []byte
			for it := Entries(frame, le.Uint32(frame[12:])); it.Next(); {
				heads = append(heads, frame[it.Off:it.Off+EntryHeaderSize]...)
			}
			body = heads
		case KindPages:
			body = body[:le.Uint32(frame[12:])*PageDescSize]
		}
		le.PutUint32(frame[24:], crc32.Checksum(body, castagnoli))
	}
	if crc {
		le.PutUint32(frame[4:], headerSum(frame))
	}
}

// judge says what a receiver makes of a frame.
func judge(t *testing.T, frame []byte, limit int) string {
	say := func(what string, err error) string {
		if !errors.Is(err, redoubt.ErrInvalid) {
			t.Fatalf("not ErrInvalid: %v", err)
		}
		return fmt.Sprintf("%s: %v\n", what, err)
	}
	h, err := ParseHeader(frame, limit)
	if err != nil && HeaderIntact(err) {
		return say(fmt.Sprintf("header intact, request %#x", h.Req), err)
	}
	if err != nil {
		return say("header broken", err)
	}
	body := frame[HeaderSize:]
	if h.Kind == KindPages {
		body = body[:min(len(body), int(h.Aux)*PageDescSize)]
	}
	if err := h.CheckBody(body); err != nil {
		return say("body", err)
	}
	sample := golden(h.Kind)
	if sample == nil {
		return "ok\n"
	}
	m := reflect.New(reflect.TypeOf(sample).Elem()).Interface().(message)
	if err := m.Decode(body); err != nil {
		return say("message", err)
	}
	return fmt.Sprintf("ok: %+v\n", m)
}

// build room=BYTES [align=N], a line "HANDLE PAYLOAD-BYTES" for each batch: puts
// an APPEND frame together and reads it back.
func build(t *testing.T, d *datadriven.TestData) string {
	room, align := 0, HelloAlign
	d.ScanArgs(t, "room", &room)
	d.MaybeScanArgs(t, "align", &align)
	buf := bytes.Repeat([]byte{0xff}, room)
	var a AppendBuilder
	a.Reset(buf, align)
	var out strings.Builder
	for i, line := range strings.Split(d.Input, "\n") {
		var handle uint32
		var n int
		if _, err := fmt.Sscan(line, &handle, &n); err != nil {
			t.Fatalf("%s: %q: %v", d.Pos, line, err)
		}
		batch := goldenBatch(make([]byte, 64+n), redoubt.LSN(i+1), n)
		fmt.Fprintf(&out, "room %d, ", len(a.Next()))
		if !a.Add(handle, batch, redoubt.LSN(i), 0) {
			fmt.Fprintf(&out, "none for a batch of %d\n", len(batch))
			continue
		}
		fmt.Fprintf(&out, "batch of %d added\n", len(batch))
	}
	frame := a.Finish(9)
	h, err := ParseHeader(frame, room)
	if err != nil {
		t.Fatal(err)
	}
	if err := h.CheckBody(frame[HeaderSize:h.Len]); err != nil {
		t.Fatal(err)
	}
	if len(frame)%align != 0 || len(bytes.Trim(frame[h.Len:], "\x00")) != 0 {
		t.Errorf("%s: %d bytes, padding %x", d.Pos, len(frame), frame[h.Len:])
	}
	fmt.Fprintf(&out, "frame of %d bytes, padded %d\n", h.Len, len(frame))
	it := Entries(frame[:h.Len], h.Aux)
	for it.Next() {
		fmt.Fprintf(&out, "%4d: handle %d, batch of %d\n", it.Off, it.Handle, len(it.Batch))
		end := it.Off + EntryHeaderSize + len(it.Batch)
		if gap := frame[end:Padded(end, 8)]; len(bytes.Trim(gap, "\x00")) != 0 {
			t.Errorf("%s: %x behind the batch", d.Pos, gap)
		}
	}
	if it.Err() != nil {
		t.Fatal(it.Err())
	}
	return out.String()
}
