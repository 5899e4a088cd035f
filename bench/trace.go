package bench

import (
	"bufio"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/redoubt-storage/redoubt"
)

// TraceKind says what an event of a trace is.
type TraceKind uint8

const (
	TraceWrite  TraceKind = 1
	TraceZero   TraceKind = 2
	TraceCommit TraceKind = 3
	TraceEnd    TraceKind = 4
)

func (k TraceKind) String() string {
	switch k {
	case TraceWrite:
		return "WRITE"
	case TraceZero:
		return "ZERO"
	case TraceCommit:
		return "COMMIT"
	case TraceEnd:
		return "END"
	}
	return fmt.Sprintf("TraceKind(%d)", uint8(k))
}

const (
	traceMagic      = "RDTRACE1"
	traceHeaderSize = 8 + 4 + 8
	traceChangeSize = 8 + 2 + 2 // of WRITE and ZERO, behind the kind
	traceEndSize    = 8 + 8 + 32
	// maxTracePages bounds a trace's volume: the largest volume there is, 128 TiB.
	maxTracePages = 128 << 40 / redoubt.PageSize
)

// A TraceEvent is one event of a trace.
type TraceEvent struct {
	Kind TraceKind
	Page uint64 // WRITE and ZERO
	Off  int
	Len  int
	Data []byte // WRITE: the bytes, good until the next event

	Records, Commits uint64 // END
	SHA256           [32]byte
}

// A TraceReader reads a trace, event by event. It believes nothing: an event
// that breaks the format ends it with an error that says where.
type TraceReader struct {
	r     *bufio.Reader
	pages uint64
	at    int64  // bytes read, before compression
	next  uint64 // index of the next event
	ended bool
	ev    TraceEvent
	buf   [redoubt.PageSize]byte

	records, commits uint64
}

// NewTraceReader reads the header of a compressed trace.
func NewTraceReader(r io.Reader) (*TraceReader, error) {
	z, err := gzip.NewReader(r)
	if err != nil {
		return nil, fmt.Errorf("bench: trace: not a gzip file: %w: %w", err, redoubt.ErrInvalid)
	}
	return newTraceReader(z)
}

// newTraceReader reads the header of a trace that isn't compressed any more.
func newTraceReader(r io.Reader) (*TraceReader, error) {
	t := &TraceReader{r: bufio.NewReaderSize(r, 256<<10)}
	b, err := t.take(traceHeaderSize)
	if err != nil {
		return nil, t.wrap("header", err)
	}
	le := binary.LittleEndian
	size := le.Uint32(b[8:])
	t.pages = le.Uint64(b[12:])
	switch {
	case string(b[:8]) != traceMagic:
		return nil, t.invalid("begins with %q, not with %q: no trace, or one of another version", b[:8], traceMagic)
	case size != redoubt.PageSize:
		return nil, t.invalid("pages of %d bytes, this program has %d", size, redoubt.PageSize)
	case t.pages == 0 || t.pages > maxTracePages:
		return nil, t.invalid("a volume of %d pages, want 1 to %d", t.pages, int64(maxTracePages))
	}
	return t, nil
}

// Pages returns the size of the volume in pages.
func (t *TraceReader) Pages() uint64 { return t.pages }

// Index returns the index, from 0, of the event that Next returns next.
func (t *TraceReader) Index() uint64 { return t.next }

// Next returns the next event, which is good until the call after. The last one
// is END, after which it returns io.EOF.
func (t *TraceReader) Next() (*TraceEvent, error) {
	if t.ended {
		return nil, io.EOF
	}
	b, err := t.take(1)
	if err != nil {
		return nil, t.wrap("kind", err)
	}
	t.ev = TraceEvent{Kind: TraceKind(b[0])}
	switch t.ev.Kind {
	case TraceWrite, TraceZero:
		err = t.change()
	case TraceCommit:
		t.commits++
	case TraceEnd:
		err = t.end()
	default:
		err = t.invalid("event of kind %d, want 1 to 4", b[0])
	}
	if err != nil {
		return nil, err
	}
	t.next++
	return &t.ev, nil
}

// change reads the rest of a WRITE or ZERO.
func (t *TraceReader) change() error {
	e := &t.ev
	b, err := t.take(traceChangeSize)
	if err != nil {
		return t.wrap(e.Kind.String(), err)
	}
	le := binary.LittleEndian
	e.Page, e.Off, e.Len = le.Uint64(b), int(le.Uint16(b[8:])), int(le.Uint16(b[10:]))
	if e.Kind == TraceZero && e.Len == 0 {
		e.Len = redoubt.PageSize
	}
	switch {
	case e.Page >= t.pages:
		return t.invalid("%v of page %d of %d", e.Kind, e.Page, t.pages)
	case e.Len == 0:
		return t.invalid("%v of no bytes", e.Kind)
	case e.Off+e.Len > redoubt.PageSize:
		return t.invalid("%v of bytes %d+%d of a page of %d", e.Kind, e.Off, e.Len, redoubt.PageSize)
	}
	t.records++
	if e.Kind == TraceZero {
		return nil
	}
	if e.Data, err = t.take(e.Len); err != nil {
		return t.wrap("bytes of a WRITE", err)
	}
	return nil
}

// end reads the rest of END and makes sure that it is the end, and the right one.
func (t *TraceReader) end() error {
	b, err := t.take(traceEndSize)
	if err != nil {
		return t.wrap("END", err)
	}
	e, le := &t.ev, binary.LittleEndian
	e.Records, e.Commits = le.Uint64(b), le.Uint64(b[8:])
	copy(e.SHA256[:], b[16:])
	if e.Records != t.records || e.Commits != t.commits {
		return t.invalid("END speaks of %d records and %d commits, there were %d and %d: events are missing", e.Records, e.Commits, t.records, t.commits)
	}
	switch _, err := t.r.ReadByte(); {
	case err == nil:
		return t.invalid("something follows END")
	case err != io.EOF:
		return t.wrap("end of the file", err) // gzip's own sum is checked here
	}
	t.ended = true
	return nil
}

// take returns the next n bytes, at most a page, good until the next call.
func (t *TraceReader) take(n int) ([]byte, error) {
	b := t.buf[:n]
	k, err := io.ReadFull(t.r, b)
	t.at += int64(k)
	return b, err
}

// wrap says where reading ended, and that a trace that simply ends was cut.
func (t *TraceReader) wrap(what string, err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return t.invalid("%s: the file ends here, without an END: it was cut", what)
	}
	return t.invalid("%s: %v", what, err)
}

func (t *TraceReader) invalid(format string, args ...any) error {
	return fmt.Errorf("bench: trace, byte %d (uncompressed), event %d: %s: %w", t.at, t.next, fmt.Sprintf(format, args...), redoubt.ErrInvalid)
}

// A TraceSummary is what a whole trace says.
type TraceSummary struct {
	Pages   uint64 // of the volume
	Events  uint64 // END included
	Records uint64
	Commits uint64
	Bytes   uint64 // changed: of WRITEs and ZEROs
	SHA256  [32]byte
}

// ScanTrace reads all of a trace, so that whoever replays it knows before the
// first byte is sent that it is whole.
func ScanTrace(r io.Reader) (TraceSummary, error) {
	t, err := NewTraceReader(r)
	if err != nil {
		return TraceSummary{}, err
	}
	s := TraceSummary{Pages: t.pages}
	for {
		e, err := t.Next()
		if err == io.EOF {
			s.Events = t.next
			return s, nil
		}
		if err != nil {
			return s, err
		}
		s.Bytes += uint64(e.Len)
		if e.Kind == TraceEnd {
			s.Records, s.Commits, s.SHA256 = e.Records, e.Commits, e.SHA256
		}
	}
}
