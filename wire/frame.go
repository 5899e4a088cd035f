package wire

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/internal/invariant"
)

const (
	// HeaderSize is the size of a frame's header in bytes.
	HeaderSize = 32
	// Version is the protocol's version that this package speaks.
	Version = 1
	// HelloAlign is what a client pads its HELLO to, before it was told.
	HelloAlign = 512
	// MaxAlign is the largest alignment that a WELCOME may ask for.
	MaxAlign = 4096
	// MaxFrameLimit is the largest frame limit that a WELCOME may state, in
	// bytes. Every length and count of the protocol stays far below 2^31.
	MaxFrameLimit = 16 << 20
	// MinFrameLimit is the smallest: the largest batch fits.
	MinFrameLimit = redoubt.MaxBatchBytes + MaxAlign
	// MaxInFlightLimit and MaxHandlesLimit bound two more of its numbers.
	MaxInFlightLimit = 1 << 16
	MaxHandlesLimit  = 1 << 20
	// MaxPages is the largest number of pages in a READ.
	MaxPages = 64
	// MaxPagesFrame is the length of the largest PAGES frame, in bytes.
	MaxPagesFrame = HeaderSize + MaxPages*(PageDescSize+redoubt.PageSize)
	// MaxName bounds the names in HELLO and WELCOME, in bytes.
	MaxName = 255

	magic = 'R' | 'B'<<8
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// A Header is the decoded header of a frame.
type Header struct {
	Kind Kind
	Aux  uint32
	Len  int // of the frame in bytes, header included, padding excluded
	Req  uint64
	Sum  uint32
}

// ParseHeader decodes the frame header at the start of b and checks all that
// can be checked without the body: nothing in it may be used before that.
// maxFrame is the receiver's limit in bytes. If the error is one that
// [HeaderIntact] accepts, Kind and Req of the header can be trusted all the same.
func ParseHeader(b []byte, maxFrame int) (Header, error) {
	if len(b) < HeaderSize {
		return Header{}, invalid("frame of %d bytes is shorter than its header", len(b))
	}
	le := binary.LittleEndian
	if m := le.Uint16(b); m != magic {
		return Header{}, invalid("frame starts with %#04x: not this protocol, or out of step", m)
	}
	if sum := headerSum(b); sum != le.Uint32(b[4:]) {
		return Header{}, invalid("frame header's crc is %08x, it says %08x", sum, le.Uint32(b[4:]))
	}
	h := Header{
		Kind: Kind(b[3]),
		Len:  int(le.Uint32(b[8:])),
		Aux:  le.Uint32(b[12:]),
		Req:  le.Uint64(b[16:]),
		Sum:  le.Uint32(b[24:]),
	}
	s := h.Kind.spec()
	body := h.Len - HeaderSize
	switch {
	case b[2] != Version:
		return h, intact("frame of version %d, this is version %d", b[2], Version)
	case s.name == "":
		return h, intact("no such frame kind: %#02x", b[3])
	case h.Len > maxFrame && h.Kind != KindPages:
		return h, intact("%s of %d bytes, the limit is %d", s.name, le.Uint32(b[8:]), maxFrame)
	case body < s.min || body > s.max:
		return h, intact("%s with a body of %d bytes, outside %d to %d", s.name, body, s.min, s.max)
	case int64(h.Aux) > int64(s.aux) || s.aux > 0 && h.Aux == 0:
		return h, intact("%s with aux %d", s.name, h.Aux)
	case le.Uint32(b[28:]) != 0:
		return h, intact("%s with flags %#x", s.name, le.Uint32(b[28:]))
	}
	return h, nil
}

// put is ParseHeader's mirror image.
func (h *Header) put(b []byte) {
	le := binary.LittleEndian
	le.PutUint16(b, magic)
	b[2], b[3] = Version, byte(h.Kind)
	le.PutUint32(b[8:], uint32(h.Len))
	le.PutUint32(b[12:], h.Aux)
	le.PutUint64(b[16:], h.Req)
	le.PutUint32(b[24:], h.Sum)
	le.PutUint32(b[28:], 0)
	le.PutUint32(b[4:], headerSum(b))
}

func headerSum(b []byte) uint32 {
	return crc32.Update(crc32.Checksum(b[:4], castagnoli), castagnoli, b[8:HeaderSize])
}

// Padded returns n rounded up to a multiple of align, a power of two.
func Padded(n, align int) int { return (n + align - 1) &^ (align - 1) }

// CheckBody checks what of the body the sum of a parsed header covers, and that
// the lengths agree. body is the whole body of the frame; of a PAGES frame it
// is the Aux descriptors only, so that they can be judged before the pages are
// received.
func (h Header) CheckBody(body []byte) error {
	switch h.Kind {
	case KindAppend:
		return h.checkEntries(body)
	case KindPages:
		return h.checkDescs(body)
	case KindAck:
		if err := h.checkAcks(body); err != nil {
			return err
		}
	}
	if HeaderSize+len(body) != h.Len {
		return invalid("%v of %d bytes in %d", h.Kind, h.Len, HeaderSize+len(body))
	}
	return h.checkSum(crc32.Checksum(body, castagnoli))
}

func (h Header) checkSum(sum uint32) error {
	if sum != h.Sum {
		return invalid("%v, request %d: sum of the body is %08x, the header says %08x", h.Kind, h.Req, sum, h.Sum)
	}
	return nil
}

// Begin appends the room of a frame header to dst. What is appended next is the
// body; then Finish.
func Begin(dst []byte) []byte {
	var zero [HeaderSize]byte
	return append(dst, zero[:]...)
}

// Finish writes the header of a frame, which is a header's room and the body
// behind it. It is for the kinds whose sum covers the whole body.
func Finish(frame []byte, kind Kind, aux uint32, req uint64) {
	if kind == KindAppend || kind == KindPages {
		invariant.Assert(false, "wire: Finish of %v, whose sum covers a part of the body", kind)
	}
	h := Header{Kind: kind, Aux: aux, Len: len(frame), Req: req, Sum: crc32.Checksum(frame[HeaderSize:], castagnoli)}
	h.put(frame)
}

// An Appender appends the body of a frame to dst. Every message is one.
type Appender interface {
	Append(dst []byte) []byte
}

// AppendFrame appends a whole frame to dst, without padding. m may be nil, for
// an empty body.
func AppendFrame(dst []byte, kind Kind, aux uint32, req uint64, m Appender) []byte {
	start := len(dst)
	dst = Begin(dst)
	if m != nil {
		dst = m.Append(dst)
	}
	Finish(dst[start:], kind, aux, req)
	return dst
}

// Pad appends the zeros that make the client's frame, which is all of dst, a
// multiple of align.
func Pad(dst []byte, align int) []byte {
	for n := Padded(len(dst), align) - len(dst); n > 0; {
		k := min(n, len(zeros))
		dst = append(dst, zeros[:k]...)
		n -= k
	}
	return dst
}

var zeros [HelloAlign]byte

func invalid(format string, args ...any) error {
	return fmt.Errorf("wire: "+format+": %w", append(args, redoubt.ErrInvalid)...)
}

// An intactError is an error in a header whose sum is right: what it says is
// what its sender meant.
type intactError struct{ error }

func (e *intactError) Unwrap() error { return e.error }

func intact(format string, args ...any) error { return &intactError{invalid(format, args...)} }

// HeaderIntact reports whether an error of ParseHeader leaves the sum of the
// header right, so that the sender can be told, under its own request ID, what
// is wrong.
func HeaderIntact(err error) bool {
	_, ok := err.(*intactError)
	return ok
}
