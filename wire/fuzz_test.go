package wire

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"reflect"
	"testing"

	"github.com/redoubt-storage/redoubt"
)

func mustBeInvalid(t *testing.T, err error) {
	t.Helper()
	if !errors.Is(err, redoubt.ErrInvalid) {
		t.Fatalf("not ErrInvalid: %v", err)
	}
}

// FuzzParseHeader gives any bytes to the reader of headers, and again with the
// crc made right. What is accepted is written back as the same bytes.
func FuzzParseHeader(f *testing.F) {
	f.Fuzz(func(t *testing.T, b []byte, maxFrame int) {
		if _, err := ParseHeader(b, maxFrame); err != nil {
			mustBeInvalid(t, err)
		}
		if len(b) < HeaderSize {
			return
		}
		b = bytes.Clone(b[:HeaderSize])
		binary.LittleEndian.PutUint32(b[4:], headerSum(b))
		h, err := ParseHeader(b, maxFrame)
		if err != nil {
			mustBeInvalid(t, err)
			return
		}
		if h.Len > max(maxFrame, MaxPagesFrame) {
			t.Fatalf("frame of %d bytes, the limit is %d", h.Len, maxFrame)
		}
		again := make([]byte, HeaderSize)
		h.put(again)
		if !bytes.Equal(again, b) {
			t.Fatalf("accepted %x, written back as %x", b, again)
		}
	})
}

// FuzzMessage gives any body to the decoder of any kind. What is accepted is
// encoded as the same bytes.
func FuzzMessage(f *testing.F) {
	f.Fuzz(func(t *testing.T, kind byte, body []byte) {
		sample := golden(Kind(kind))
		if sample == nil {
			return
		}
		m := reflect.New(reflect.TypeOf(sample).Elem()).Interface().(message)
		if err := m.Decode(body); err != nil {
			mustBeInvalid(t, err)
			return
		}
		if again := m.Append(nil); !bytes.Equal(again, body) {
			t.Fatalf("%v: accepted %x, encoded as %x", Kind(kind), body, again)
		}
	})
}

// FuzzAppendFrame walks any bytes as the entries of an APPEND frame, and checks
// them with the sum made right. A frame that is accepted comes out of the
// builder as the same bytes, but for what nobody reads between the entries.
func FuzzAppendFrame(f *testing.F) {
	f.Fuzz(func(t *testing.T, body []byte, n uint32) {
		frame := append(make([]byte, HeaderSize), body...)
		var (
			a     AppendBuilder
			heads []byte
			count uint32
		)
		a.Reset(make([]byte, Padded(len(frame), HelloAlign)), HelloAlign)
		it := Entries(frame, n)
		for ; it.Next(); count++ {
			if it.Off%8 != 0 || it.Off < HeaderSize || it.Off+EntryHeaderSize+len(it.Batch) > len(frame) {
				t.Fatalf("entry at byte %d with %d bytes of %d", it.Off, len(it.Batch), len(frame))
			}
			heads = append(heads, frame[it.Off:it.Off+EntryHeaderSize]...)
			if !a.Add(it.Handle, it.Batch, it.VDL, it.Floor) {
				t.Fatalf("no room for entry %d in as many bytes as it came from", count)
			}
		}
		h := Header{Kind: KindAppend, Aux: n, Len: len(frame), Sum: crc32.Checksum(heads, castagnoli)}
		err := h.CheckBody(body)
		if err == nil != (it.Err() == nil && count == n) {
			t.Fatalf("the walk says %v after %d of %d entries, the check %v", it.Err(), count, n, err)
		}
		if err != nil {
			mustBeInvalid(t, err)
			return
		}
		if n == 0 {
			return
		}
		built := a.Finish(0)
		bh, err := ParseHeader(built, MaxFrameLimit)
		if err != nil || bh != h {
			t.Fatalf("built %+v (%v), accepted %+v", bh, err, h)
		}
	})
}

// FuzzAnswers gives any bytes to what a client reads without a struct.
func FuzzAnswers(f *testing.F) {
	f.Fuzz(func(t *testing.T, body []byte, aux uint32, pages bool) {
		h := Header{Kind: KindAck, Aux: aux, Len: HeaderSize + len(body), Sum: crc32.Checksum(body, castagnoli)}
		if !pages {
			if err := h.CheckBody(body); err != nil {
				mustBeInvalid(t, err)
				return
			}
			var again []byte
			for i := range int(aux) {
				again = AppendAck(again, AckAt(body, i))
			}
			if !bytes.Equal(again, body) {
				t.Fatalf("accepted %x, encoded as %x", body, again)
			}
			return
		}
		aux %= MaxPages + 2
		h.Kind, h.Aux = KindPages, aux
		for i := range min(int(aux), len(body)/PageDescSize) {
			if PageDescAt(body, i).Code == CodeOK {
				h.Len += redoubt.PageSize
			}
		}
		if err := h.CheckBody(body); err != nil {
			mustBeInvalid(t, err)
			return
		}
		if aux == 0 || aux > MaxPages {
			return
		}
		var descs []PageDesc
		for i := range int(aux) {
			descs = append(descs, PageDescAt(body, i))
		}
		head := AppendPagesHead(nil, 0, descs)
		if again, err := ParseHeader(head, 0); err != nil || again != h || !bytes.Equal(head[HeaderSize:], body) {
			t.Fatalf("accepted %+v %x, encoded as %+v %x (%v)", h, body, again, head[HeaderSize:], err)
		}
	})
}
