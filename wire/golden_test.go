package wire

import (
	"encoding/hex"
	"fmt"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"
	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/redo"
)

// A message is what every kind but APPEND, ACK and PAGES has for a body.
type message interface {
	Appender
	Decode(b []byte) error
}

// number fills every integer and every byte array of *p, in the order of the
// fields, with bytes that count up from first, so that no two fields look alike
// and none has a zero. It returns the next byte.
func number(p reflect.Value, next byte) byte {
	switch p.Kind() {
	case reflect.Struct:
		for i := range p.NumField() {
			next = number(p.Field(i), next)
		}
	case reflect.Array:
		for i := range p.Len() {
			next = number(p.Index(i), next)
		}
	case reflect.Uint8, reflect.Uint32, reflect.Uint64:
		v := uint64(0)
		for i := range int(p.Type().Size()) {
			v |= uint64(next) << (8 * i)
			next++
		}
		p.SetUint(v)
	}
	return next
}

func numbered[M any](first byte, change func(m *M)) *M {
	m := new(M)
	number(reflect.ValueOf(m).Elem(), first)
	if change != nil {
		change(m)
	}
	return m
}

// golden returns the sample of a kind. What the format bounds is set apart.
func golden(k Kind) message {
	switch k {
	case KindHello:
		return &Hello{MinVersion: 1, MaxVersion: 7, Name: "bench \u00e0 Z\u00fcrich"}
	case KindCreate:
		return numbered(0x21, func(m *Create) { m.Pages, m.Kind, m.Lane = 0x3c2b1a, redoubt.TailSegment, 0x5e })
	case KindDelete:
		return numbered[Delete](0x21, nil)
	case KindAttach:
		return numbered[Attach](0x21, nil)
	case KindDescribe:
		return numbered[Describe](0x21, nil)
	case KindList:
		return numbered[List](0x21, nil)
	case KindRead:
		return numbered(0x21, func(m *Read) { m.Pages = []uint32{0x34333231, 0x38373635, 0x3c3b3a39} })
	case KindFloor:
		return numbered[Floor](0x21, nil)
	case KindFence:
		return numbered[Fence](0x21, nil)
	case KindTruncate:
		return numbered[Truncate](0x21, nil)
	case KindTail:
		return numbered[Tail](0x21, nil)
	}
	return goldenAnswer(k)
}

func goldenAnswer(k Kind) message {
	switch k {
	case KindWelcome:
		return numbered(0x21, func(m *Welcome) {
			m.Version, m.Lanes, m.Align, m.MaxFrame = 1, 8, 4096, 0x347000
			m.MaxPages, m.MaxInFlight, m.MaxHandles = 0x3d, 0x8182, 0x0f9192
			m.Name = "node 7"
		})
	case KindError:
		return numbered(0x21, func(m *Error) { m.Entry, m.Message = 0x35343332, "fenced: \u00e9poque 9" })
	case KindAttached:
		return numbered[Attached](0x21, nil)
	case KindDescription:
		return numbered[Description](0x21, nil)
	case KindListed:
		return &Listed{More: true, Segments: []Summary{*numbered[Summary](0x21, nil), *numbered[Summary](0x61, nil)}}
	case KindTailed:
		return numbered(0x11, func(m *Tailed) {
			m.More = true
			m.Records = []Held{{LSN: 0x2827262524232221, CPL: true}, {LSN: 0x3837363534333231}}
		})
	}
	return nil
}

const goldenReq = 0x1817161514131211

// goldenFrame returns the frame of a kind, padded if it is a client's.
func goldenFrame(t testing.TB, k Kind) []byte {
	var frame []byte
	switch k {
	case KindAppend:
		frame = goldenAppend(t)
	case KindAck:
		frame = AppendAck(AppendAck(Begin(nil), Ack{0x24232221, 0x3837363534333231}), Ack{0x44434241, 0x5857565554535251})
		Finish(frame, k, 2, 0)
	case KindPages:
		frame = AppendPagesHead(nil, goldenReq, []PageDesc{
			{Page: 0x24232221, Code: CodeOK, LSN: 0x3837363534333231, Sum: 0x44434241},
			{Page: 0x54535251, Code: CodeBelowFloor, LSN: 0x6867666564636261, Sum: 0x74737271},
		})
		page := make([]byte, redoubt.PageSize)
		for i := range page {
			page[i] = byte(i % 251)
		}
		frame = append(frame, page...)
	case KindPing, KindOK:
		frame = AppendFrame(nil, k, 0, goldenReq, nil)
	case KindBye:
		frame = AppendFrame(nil, k, 0, 0, nil)
	default:
		frame = AppendFrame(nil, k, 0, goldenReq, golden(k))
	}
	if !k.FromNode() {
		frame = Pad(frame, HelloAlign)
	}
	return frame
}

// goldenBatch is a batch of n bytes of payload in room.
func goldenBatch(room []byte, first redoubt.LSN, n int) []byte {
	var b redo.Builder
	b.Reset(room, redoubt.VolumeID{15: 7}, 3, 9, first-1)
	data := make([]byte, n)
	for i := range data {
		data[i] = byte(0xa0 + i)
	}
	b.Write(first, 5, 0, 16, data, true)
	return b.Finish()
}

func goldenAppend(t testing.TB) []byte {
	var a AppendBuilder
	a.Reset(make([]byte, 1000), HelloAlign)
	a.Commit(0x24232221, len(goldenBatch(a.Next(), 101, 3)), 0x3837363534333231, 0x4847464544434241)
	if !a.Add(0x54535251, goldenBatch(make([]byte, 100), 201, 12), 0x6867666564636261, 0x7877767574737271) {
		t.Fatal("no room")
	}
	return a.Finish(goldenReq)
}

// kinds returns every kind there is.
func kinds() []Kind {
	var all []Kind
	for k := range 256 {
		if Kind(k).spec().name != "" {
			all = append(all, Kind(k))
		}
	}
	return all
}

// TestGolden holds the bytes of a frame of every kind, and that the decoder
// makes of them what the encoder was given.
func TestGolden(t *testing.T) {
	left := map[string]Kind{}
	for _, k := range kinds() {
		left[k.String()] = k
	}
	datadriven.RunTest(t, "testdata/golden", func(t *testing.T, d *datadriven.TestData) string {
		k, ok := left[d.Cmd]
		if !ok {
			t.Fatalf("%s: no kind %s, or twice", d.Pos, d.Cmd)
		}
		delete(left, d.Cmd)
		frame := goldenFrame(t, k)
		h, err := ParseHeader(frame, MaxFrameLimit)
		if err != nil {
			t.Fatalf("%s: %v", d.Pos, err)
		}
		checkGolden(t, h, frame)
		if k == KindPages {
			frame = frame[:len(frame)-redoubt.PageSize]
		}
		return hex.Dump(frame[:min(h.Len, len(frame))])
	})
	if len(left) > 0 && !t.Failed() {
		t.Errorf("no golden frame for %v", left)
	}
}

// checkGolden decodes the frame and compares with the sample.
func checkGolden(t *testing.T, h Header, frame []byte) {
	t.Helper()
	body := frame[HeaderSize:h.Len]
	if h.Kind == KindPages {
		body = body[:int(h.Aux)*PageDescSize]
	}
	if err := h.CheckBody(body); err != nil {
		t.Fatal(err)
	}
	if h.Req != goldenReq && h.Kind != KindAck && h.Kind != KindBye {
		t.Errorf("%v: request %#x", h.Kind, h.Req)
	}
	want := golden(h.Kind)
	if want == nil {
		return
	}
	got := reflect.New(reflect.TypeOf(want).Elem()).Interface().(message)
	if err := got.Decode(body); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%v: decoded %+v, want %+v", h.Kind, got, want)
	}
}

// TestGoldenHot holds what the decoders without a struct make of the golden
// frames.
func TestGoldenHot(t *testing.T) {
	acks := goldenFrame(t, KindAck)[HeaderSize:]
	if a, b := AckAt(acks, 0), AckAt(acks, 1); a != (Ack{0x24232221, 0x3837363534333231}) || b != (Ack{0x44434241, 0x5857565554535251}) {
		t.Errorf("acks %+v, %+v", a, b)
	}
	pages := goldenFrame(t, KindPages)[HeaderSize:]
	if d := PageDescAt(pages, 1); d != (PageDesc{0x54535251, CodeBelowFloor, 0x6867666564636261, 0x74737271}) {
		t.Errorf("page descriptor %+v", d)
	}
	frame := goldenFrame(t, KindAppend)
	h, err := ParseHeader(frame, MaxFrameLimit)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	it := Entries(frame[:h.Len], h.Aux)
	for it.Next() {
		bh, err := redo.Verify(redoubt.VolumeID{15: 7}, it.Batch)
		got = append(got, fmt.Sprintf("%d: %#x vdl %#x floor %#x LSN %d %v", it.Off, it.Handle, it.VDL, it.Floor, bh.First, err))
		clear(frame[it.Off : it.Off+EntryHeaderSize]) // as a node does that puts its own header there
	}
	want := []string{
		"32: 0x24232221 vdl 0x3837363534333231 floor 0x4847464544434241 LSN 101 <nil>",
		"128: 0x54535251 vdl 0x6867666564636261 floor 0x7877767574737271 LSN 201 <nil>",
	}
	if it.Err() != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("entries %q (%v), want %q", got, it.Err(), want)
	}
}

// TestDocHasGoldenBytes: the bytes that the package comment shows are the real
// ones, and it names every kind and every code.
func TestDocHasGoldenBytes(t *testing.T) {
	doc, err := os.ReadFile("doc.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range []Kind{KindPing, KindOK} {
		f := goldenFrame(t, k)
		line := fmt.Sprintf("//\t%x %x %x %x %x %x %x\n", f[:4], f[4:8], f[8:12], f[12:16], f[16:24], f[24:28], f[28:32])
		if !strings.Contains(string(doc), line) {
			t.Errorf("the package comment lacks the line\n%s", line)
		}
	}
	for _, k := range kinds() {
		if !strings.Contains(string(doc), fmt.Sprintf("%#02x %v", uint8(k), k)) {
			t.Errorf("the package comment lacks %#02x %v", uint8(k), k)
		}
	}
	for c := CodeCorrupt; c <= CodeInternal; c++ {
		if !strings.Contains(string(doc), fmt.Sprintf("//\t%2d %v ", c, c)) {
			t.Errorf("the package comment lacks code %d %v", c, c)
		}
	}
}
