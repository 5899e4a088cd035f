package bench

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"
	"github.com/redoubt-storage/redoubt"
)

// A traceBuilder writes traces: TraceReader's mirror image.
type traceBuilder struct {
	buf              []byte
	volume           [][]byte // by page; nil: zeros
	records, commits uint64
}

func newTraceBuilder(pages uint64) *traceBuilder {
	b := &traceBuilder{volume: make([][]byte, pages)}
	b.buf = append(b.buf, traceMagic...)
	b.buf = binary.LittleEndian.AppendUint32(b.buf, redoubt.PageSize)
	b.buf = binary.LittleEndian.AppendUint64(b.buf, pages)
	return b
}

func (b *traceBuilder) page(p uint64) []byte {
	if b.volume[p] == nil {
		b.volume[p] = make([]byte, redoubt.PageSize)
	}
	return b.volume[p]
}

func (b *traceBuilder) change(kind TraceKind, page uint64, off, n int) {
	le := binary.LittleEndian
	b.buf = append(b.buf, byte(kind))
	b.buf = le.AppendUint64(b.buf, page)
	b.buf = le.AppendUint16(b.buf, uint16(off))
	b.buf = le.AppendUint16(b.buf, uint16(n))
	b.records++
}

func (b *traceBuilder) write(page uint64, off int, data []byte) {
	b.change(TraceWrite, page, off, len(data))
	b.buf = append(b.buf, data...)
	copy(b.page(page)[off:], data)
}

// zero makes n bytes zeros; with n 0 the whole page.
func (b *traceBuilder) zero(page uint64, off, n int) {
	b.change(TraceZero, page, off, n)
	if n == 0 {
		n = redoubt.PageSize
	}
	clear(b.page(page)[off : off+n])
}

func (b *traceBuilder) commit() {
	b.buf = append(b.buf, byte(TraceCommit))
	b.commits++
}

// sum returns the SHA-256 of the volume as it is now.
func (b *traceBuilder) sum() (s [32]byte) {
	h := sha256.New()
	for _, p := range b.volume {
		if p == nil {
			p = make([]byte, redoubt.PageSize)
		}
		h.Write(p)
	}
	h.Sum(s[:0])
	return s
}

// end returns the whole trace, not compressed.
func (b *traceBuilder) end() []byte {
	le := binary.LittleEndian
	b.buf = append(b.buf, byte(TraceEnd))
	b.buf = le.AppendUint64(b.buf, b.records)
	b.buf = le.AppendUint64(b.buf, b.commits)
	s := b.sum()
	return append(b.buf, s[:]...)
}

func compress(t testing.TB, raw []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	if _, err := z.Write(raw); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// syntheticTrace is a database run in small: hot pages that every commit
// touches, cold ones, whole pages, zeros, and a tail behind the last COMMIT.
func syntheticTrace(pages uint64, commits int, seed uint64) *traceBuilder {
	b := newTraceBuilder(pages)
	rnd := rand.New(rand.NewPCG(seed, 7))
	data := make([]byte, redoubt.PageSize)
	some := func() {
		page := rnd.Uint64N(pages)
		if rnd.IntN(3) == 0 {
			page = rnd.Uint64N(4)
		}
		n := 1 + rnd.IntN(200)
		if rnd.IntN(40) == 0 {
			n = redoubt.PageSize
		}
		off := rnd.IntN(redoubt.PageSize - n + 1)
		if rnd.IntN(10) == 0 {
			b.zero(page, off, n%redoubt.PageSize)
			return
		}
		for i := range n {
			data[i] = byte(rnd.Uint32())
		}
		b.write(page, off, data[:n])
	}
	for i := range commits {
		for range 1 + rnd.IntN(12) {
			some()
		}
		if i%97 == 5 {
			b.commit() // one with nothing in between
		}
		b.commit()
	}
	some()
	return b
}

// opener returns what ReplayOptions want of a trace.
func opener(t testing.TB, raw []byte) func() (io.ReadCloser, error) {
	z := compress(t, raw)
	return func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(z)), nil }
}

// TestTraceScripts tells the format as a conversation: traces are built,
// damaged, and read.
func TestTraceScripts(t *testing.T) {
	datadriven.Walk(t, "testdata/trace", func(t *testing.T, path string) {
		var raw []byte
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			switch d.Cmd {
			case "build":
				raw = buildTrace(t, d)
				return fmt.Sprintf("%d bytes\n", len(raw))
			case "raw":
				raw = unhexLines(t, d.Input)
				return fmt.Sprintf("%d bytes\n", len(raw))
			case "read":
				return readTrace(damageTrace(t, d, raw))
			}
			t.Fatalf("%s: no such command %q", d.Pos, d.Cmd)
			return ""
		})
	})
}

// unhexLines reads hex digits, of which what follows a # is a comment.
func unhexLines(t *testing.T, text string) (b []byte) {
	for line := range strings.Lines(text) {
		line, _, _ = strings.Cut(line, "#")
		v, err := hex.DecodeString(strings.Join(strings.Fields(line), ""))
		if err != nil {
			t.Fatal(err)
		}
		b = append(b, v...)
	}
	return b
}

// build pages=N, then one event a line: write PAGE OFF HEX, zero PAGE OFF N,
// commit. END follows by itself.
func buildTrace(t *testing.T, d *datadriven.TestData) []byte {
	var pages uint64
	d.ScanArgs(t, "pages", &pages)
	b := newTraceBuilder(pages)
	for line := range strings.Lines(d.Input) {
		var (
			page   uint64
			off, n int
			data   []byte
		)
		f := strings.Fields(line)
		var err error
		switch f[0] {
		case "write":
			_, err = fmt.Sscan(strings.Join(f[1:3], " "), &page, &off)
			data, _ = hex.DecodeString(f[3])
			b.write(page, off, data)
		case "zero":
			_, err = fmt.Sscan(strings.Join(f[1:], " "), &page, &off, &n)
			b.zero(page, off, n)
		case "commit":
			b.commit()
		default:
			err = errors.New("no such event")
		}
		if err != nil {
			t.Fatalf("%s: line %q: %v", d.Pos, line, err)
		}
	}
	return b.end()
}

// damageTrace sets the bytes at at=N to set=HEX, cuts to cut=N bytes (from the
// end if negative), and appends add=HEX.
func damageTrace(t *testing.T, d *datadriven.TestData, raw []byte) []byte {
	t.Helper()
	b := bytes.Clone(raw)
	var at, cut int
	var set, add string
	d.MaybeScanArgs(t, "at", &at)
	d.MaybeScanArgs(t, "set", &set)
	d.MaybeScanArgs(t, "cut", &cut)
	d.MaybeScanArgs(t, "add", &add)
	v, err := hex.DecodeString(set)
	if err != nil {
		t.Fatal(err)
	}
	if at < 0 {
		at += len(b)
	}
	copy(b[at:], v)
	switch {
	case cut > 0:
		b = b[:cut]
	case cut < 0:
		b = b[:len(b)+cut]
	}
	more, err := hex.DecodeString(add)
	if err != nil {
		t.Fatal(err)
	}
	b = append(b, more...)
	if len(d.CmdArgs) > 0 && bytes.Equal(b, raw) {
		t.Fatalf("%s: the damage changed nothing", d.Pos)
	}
	return b
}

func readTrace(raw []byte) string {
	t, err := newTraceReader(bytes.NewReader(raw))
	if err != nil {
		return traceVerdict(err)
	}
	var out strings.Builder
	fmt.Fprintf(&out, "%d pages\n", t.Pages())
	for {
		at := t.Index()
		e, err := t.Next()
		if err == io.EOF {
			return out.String()
		}
		if err != nil {
			return out.String() + traceVerdict(err)
		}
		fmt.Fprintf(&out, "%3d %v", at, e.Kind)
		switch e.Kind {
		case TraceWrite:
			fmt.Fprintf(&out, " page %d bytes %d+%d %x", e.Page, e.Off, e.Len, e.Data[:min(16, len(e.Data))])
		case TraceZero:
			fmt.Fprintf(&out, " page %d bytes %d+%d", e.Page, e.Off, e.Len)
		case TraceEnd:
			fmt.Fprintf(&out, " %d records %d commits %x", e.Records, e.Commits, e.SHA256[:8])
		}
		out.WriteString("\n")
	}
}

func traceVerdict(err error) string {
	kind := "invalid"
	if !errors.Is(err, redoubt.ErrInvalid) {
		kind = "NO KIND"
	}
	return fmt.Sprintf("%s: %v\n", kind, err)
}

// TestTheBundledTraceIsWhole reads the trace that the demo replays: it says what
// its README says.
func TestTheBundledTraceIsWhole(t *testing.T) {
	s, err := ScanTrace(bytes.NewReader(bundledTrace))
	if err != nil {
		t.Fatal(err)
	}
	const want = "1c417e37794326987a5e184f109fca865fdfb9f8444b181829e68a0f0fa90cb4"
	if s.Pages != 65536 || s.Records != 107740 || s.Commits != 3087 || hex.EncodeToString(s.SHA256[:]) != want {
		t.Fatalf("%+v, sum %x", s, s.SHA256)
	}
}

// TestATraceThatIsDamagedInItsFileIsRefused flips bits and cuts the compressed
// file everywhere: gzip's sum, or the format, must notice.
func TestATraceThatIsDamagedInItsFileIsRefused(t *testing.T) {
	z := compress(t, syntheticTrace(8, 3, 1).end())
	whole, err := ScanTrace(bytes.NewReader(z))
	if err != nil {
		t.Fatal(err)
	}
	for n := range len(z) {
		if _, err := ScanTrace(bytes.NewReader(z[:n])); !errors.Is(err, redoubt.ErrInvalid) {
			t.Fatalf("cut to %d of %d bytes: %v", n, len(z), err)
		}
	}
	const gzipHeader = 10 // of which no sum knows
	refused := 0
	for i := gzipHeader; i < len(z); i++ {
		bad := bytes.Clone(z)
		bad[i] ^= 0x10
		switch got, err := ScanTrace(bytes.NewReader(bad)); {
		case errors.Is(err, redoubt.ErrInvalid):
			refused++
		case err != nil || got != whole: // a bit that pads the last block means nothing
			t.Fatalf("bit flip in byte %d of %d: %+v, %v", i, len(z), got, err)
		}
	}
	if n := len(z) - gzipHeader; refused < n-2 {
		t.Fatalf("%d of %d flips were refused", refused, n)
	}
	if _, err := ScanTrace(strings.NewReader("not a trace")); !errors.Is(err, redoubt.ErrInvalid) {
		t.Fatal(err)
	}
}

func FuzzTrace(f *testing.F) {
	whole := syntheticTrace(5, 4, 2).end()
	f.Add(whole)
	f.Add(whole[:len(whole)/2])
	f.Add([]byte(traceMagic))
	f.Fuzz(func(t *testing.T, raw []byte) {
		r, err := newTraceReader(bytes.NewReader(raw))
		if err != nil {
			if !errors.Is(err, redoubt.ErrInvalid) {
				t.Fatalf("an error of no kind: %v", err)
			}
			return
		}
		b := newTraceBuilder(1)
		b.buf = b.buf[:0]
		b.buf = append(b.buf, raw[:traceHeaderSize]...)
		for {
			e, err := r.Next()
			if err == io.EOF {
				break
			}
			if err != nil {
				if !errors.Is(err, redoubt.ErrInvalid) {
					t.Fatalf("an error of no kind: %v", err)
				}
				return
			}
			reencode(t, b, r, e)
		}
		// What was accepted is exactly what was said.
		if got := len(b.buf); got != len(raw) {
			t.Fatalf("%d bytes were read as %d", len(raw), got)
		}
	})
}

// reencode appends an event as it was read, and holds what every reader relies
// on.
func reencode(t *testing.T, b *traceBuilder, r *TraceReader, e *TraceEvent) {
	switch e.Kind {
	case TraceWrite, TraceZero:
		if e.Page >= r.Pages() || e.Off < 0 || e.Len < 1 || e.Off+e.Len > redoubt.PageSize {
			t.Fatalf("%+v in a volume of %d pages", e, r.Pages())
		}
		if e.Kind == TraceWrite && len(e.Data) != e.Len || e.Kind == TraceZero && e.Data != nil {
			t.Fatalf("%v with %d bytes", e.Kind, len(e.Data))
		}
		b.change(e.Kind, e.Page, e.Off, e.Len)
		b.buf = append(b.buf, e.Data...)
	case TraceCommit:
		b.commit()
	case TraceEnd:
		if e.Records != b.records || e.Commits != b.commits {
			t.Fatalf("END of %d records, %d commits after %d and %d", e.Records, e.Commits, b.records, b.commits)
		}
		b.buf = append(b.buf, make([]byte, 1+traceEndSize)...)
	}
}
