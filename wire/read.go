package wire

import (
	"encoding/binary"
	"hash/crc32"

	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/internal/invariant"
)

const (
	// AckSize is the size of one ack of an ACK frame in bytes.
	AckSize = 16
	// PageDescSize is the size of one descriptor of a PAGES frame in bytes.
	PageDescSize = 24

	readSize = 24
)

// An Ack says that a segment has every record up to SCL on stable storage. It
// covers every APPEND before, answered or not; the highest one counts.
type Ack struct {
	Handle uint32
	SCL    redoubt.LSN
}

// AppendAck appends one ack to the body of an ACK frame.
func AppendAck(dst []byte, a Ack) []byte {
	le := binary.LittleEndian
	dst = le.AppendUint32(dst, a.Handle)
	dst = le.AppendUint32(dst, 0)
	return le.AppendUint64(dst, uint64(a.SCL))
}

// AckAt returns ack i of the body of a checked ACK frame, which has Aux of them.
func AckAt(body []byte, i int) Ack {
	b := body[i*AckSize : (i+1)*AckSize]
	le := binary.LittleEndian
	return Ack{Handle: le.Uint32(b), SCL: redoubt.LSN(le.Uint64(b[8:]))}
}

// checkAcks is what CheckBody asks of an ACK frame besides its sum.
func (h Header) checkAcks(body []byte) error {
	if len(body) != int(h.Aux)*AckSize {
		return invalid("ACK of %d bytes with %d handles", len(body), h.Aux)
	}
	for i := range int(h.Aux) {
		if flags := binary.LittleEndian.Uint32(body[i*AckSize+4:]); flags != 0 {
			return invalid("ACK %d of %d with flags %#x", i, h.Aux, flags)
		}
	}
	return nil
}

// A Read asks for pages as of a read point. Answered with PAGES.
type Read struct {
	Handle uint32
	Point  redoubt.LSN
	// Need is the LSN of the group's last record at or below Point, if the client
	// knows it, else 0. LSNs are dense in a volume and sparse in a group: a
	// segment whose SCL is below Point may be complete there all the same, and
	// only the client can tell it so.
	Need  redoubt.LSN
	Pages []uint32 // indices inside the protection group, 1 to MaxPages
}

// ReadFrameSize returns the length of a READ frame for n pages in bytes, without
// padding.
func ReadFrameSize(n int) int { return HeaderSize + readSize + 4*n }

// Append appends the body of READ to dst.
func (m *Read) Append(dst []byte) []byte {
	le := binary.LittleEndian
	dst = le.AppendUint32(dst, m.Handle)
	dst = le.AppendUint32(dst, uint32(len(m.Pages)))
	dst = le.AppendUint64(dst, uint64(m.Point))
	dst = le.AppendUint64(dst, uint64(m.Need))
	for _, p := range m.Pages {
		dst = le.AppendUint32(dst, p)
	}
	return dst
}

// Decode reads the body of READ. It uses the memory of m.Pages again if that
// has room.
func (m *Read) Decode(b []byte) error {
	le := binary.LittleEndian
	if len(b) < readSize {
		return invalid("READ of %d bytes", len(b))
	}
	n := le.Uint32(b[4:])
	if n < 1 || n > MaxPages || len(b) != readSize+4*int(n) {
		return invalid("READ of %d bytes says it asks for %d pages", len(b), n)
	}
	m.Handle = le.Uint32(b)
	m.Point = redoubt.LSN(le.Uint64(b[8:]))
	m.Need = redoubt.LSN(le.Uint64(b[16:]))
	m.Pages = m.Pages[:0]
	for i := range int(n) {
		m.Pages = append(m.Pages, le.Uint32(b[readSize+4*i:]))
	}
	return nil
}

// A PageDesc describes one page of a PAGES frame. Those with CodeOK are
// followed, behind all the descriptors, by the page's 16 KiB.
type PageDesc struct {
	Page uint32 // as asked
	Code Code
	// LSN of the last record applied; 0: the page was never written and is all
	// zeros. With CodeBelowFloor it is PGMRPL and with CodeAboveSCL the SCL.
	LSN redoubt.LSN
	Sum uint32 // redo.PageSum
}

// AppendPageDesc appends one descriptor to the body of a PAGES frame.
func AppendPageDesc(dst []byte, d PageDesc) []byte {
	le := binary.LittleEndian
	dst = le.AppendUint32(dst, d.Page)
	dst = le.AppendUint32(dst, uint32(d.Code))
	dst = le.AppendUint64(dst, uint64(d.LSN))
	dst = le.AppendUint32(dst, d.Sum)
	return le.AppendUint32(dst, 0)
}

// PageDescAt returns descriptor i of the body of a PAGES frame, which has Aux
// of them.
func PageDescAt(body []byte, i int) PageDesc {
	b := body[i*PageDescSize : (i+1)*PageDescSize]
	le := binary.LittleEndian
	return PageDesc{
		Page: le.Uint32(b),
		Code: Code(le.Uint32(b[4:])),
		LSN:  redoubt.LSN(le.Uint64(b[8:])),
		Sum:  le.Uint32(b[16:]),
	}
}

// AppendPagesHead appends the header and the descriptors of a PAGES frame to
// dst. The pages with CodeOK, 16 KiB each and in the same order, follow it on
// the wire.
func AppendPagesHead(dst []byte, req uint64, descs []PageDesc) []byte {
	if len(descs) < 1 || len(descs) > MaxPages {
		invariant.Assert(false, "wire: PAGES frame of %d pages", len(descs))
	}
	start := len(dst)
	dst = Begin(dst)
	pages := 0
	for _, d := range descs {
		dst = AppendPageDesc(dst, d)
		if d.Code == CodeOK {
			pages++
		}
	}
	frame := dst[start:]
	h := Header{Kind: KindPages, Aux: uint32(len(descs)), Len: len(frame) + pages*redoubt.PageSize, Req: req,
		Sum: crc32.Checksum(frame[HeaderSize:], castagnoli)}
	h.put(frame)
	return dst
}

// checkDescs is CheckBody of a PAGES frame.
func (h Header) checkDescs(descs []byte) error {
	if len(descs) != int(h.Aux)*PageDescSize {
		return invalid("PAGES: %d bytes of %d descriptors", len(descs), h.Aux)
	}
	if err := h.checkSum(crc32.Checksum(descs, castagnoli)); err != nil {
		return err
	}
	pages := 0
	for i := range int(h.Aux) {
		if PageDescAt(descs, i).Code == CodeOK {
			pages++
		}
		if rsv := binary.LittleEndian.Uint32(descs[i*PageDescSize+20:]); rsv != 0 {
			return invalid("PAGES: descriptor %d with reserved bytes %#x", i, rsv)
		}
	}
	if want := HeaderSize + len(descs) + pages*redoubt.PageSize; want != h.Len {
		return invalid("PAGES of %d bytes with %d descriptors and %d pages", h.Len, h.Aux, pages)
	}
	return nil
}
