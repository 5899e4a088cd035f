package wire

import (
	"errors"
	"fmt"
	"io"
	"reflect"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/redoubt-storage/redoubt"
)

// relay encodes an error and decodes it again, as it reaches the client.
func relay(t *testing.T, e Error) *Error {
	t.Helper()
	got := new(Error)
	if err := got.Decode(e.Append(nil)); err != nil {
		t.Fatal(err)
	}
	return got
}

// TestErrorsKeepTheirKind: whatever matches a sentinel on the node matches it,
// and no other, at the client.
func TestErrorsKeepTheirKind(t *testing.T) {
	seen := map[Code]bool{CodeOK: true, CodeInternal: true}
	for _, c := range codes {
		if seen[c.code] {
			t.Errorf("code %d stands for two kinds", c.code)
		}
		seen[c.code] = true
		got := relay(t, ErrorOf(3, fmt.Errorf("segfile: segment 7: %w", c.kind)))
		for _, other := range codes {
			if errors.Is(got, other.kind) != (other.code == c.code) {
				t.Errorf("%v at the client: matches %v: %v", c.kind, other.kind, errors.Is(got, other.kind))
			}
		}
		if want := "segfile: segment 7: " + c.kind.Error(); got.Error() != want || got.Entry != 3 {
			t.Errorf("at the client: %q, entry %d; want %q, entry 3", got, got.Entry, want)
		}
	}
	if len(seen) != int(CodeInternal)+1 {
		t.Errorf("%d codes, want %d without gaps", len(seen), CodeInternal+1)
	}
}

// TestForeignErrors: an error of no kind is internal, and matches nothing.
func TestForeignErrors(t *testing.T) {
	got := relay(t, ErrorOf(NoEntry, io.ErrUnexpectedEOF))
	if got.Code != CodeInternal || got.Kind() != nil || got.Entry != NoEntry || got.Error() != "unexpected EOF" {
		t.Errorf("%+v", got)
	}
	if c := CodeOf(nil); c != CodeOK {
		t.Errorf("no error has code %v", c)
	}
}

func (e *Error) Kind() error { return e.Unwrap() }

// TestFencedBeatsRetry: of an error that matches several kinds, the one that
// stops the client goes on the wire.
func TestFencedBeatsRetry(t *testing.T) {
	err := errors.Join(redoubt.ErrBusy, redoubt.ErrNotFound, redoubt.ErrFenced)
	if c := CodeOf(err); c != CodeFenced {
		t.Errorf("%v goes as %v", err, c)
	}
}

// TestUnknownCodesSurvive a relay, unchanged and wrapped.
func TestUnknownCodesSurvive(t *testing.T) {
	first := relay(t, Error{Code: 4711, Entry: NoEntry, A: 5, B: 6})
	if first.Error() != "Code(4711)" || first.Unwrap() != nil {
		t.Errorf("%q matches %v", first, first.Unwrap())
	}
	second := relay(t, ErrorOf(2, fmt.Errorf("relay: %w", first)))
	want := &Error{Code: 4711, Entry: 2, A: 5, B: 6, Message: "relay: Code(4711)"}
	if !reflect.DeepEqual(second, want) {
		t.Errorf("%+v, want %+v", second, want)
	}
}

// An epochError is an error of a package below this one that knows its numbers.
type epochError struct{ held, membership uint64 }

func (e *epochError) Error() string             { return fmt.Sprintf("epoch %d is held", e.held) }
func (e *epochError) Unwrap() error             { return redoubt.ErrFenced }
func (e *epochError) WireDetail() (a, b uint64) { return e.held, e.membership }

// TestErrorDetail: the numbers travel, from however deep they come.
func TestErrorDetail(t *testing.T) {
	got := relay(t, ErrorOf(NoEntry, fmt.Errorf("node: %w", &epochError{9, 4})))
	want := &Error{Code: CodeFenced, Entry: NoEntry, A: 9, B: 4, Message: "node: epoch 9 is held"}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, want %+v", got, want)
	}
}

// TestLongAndBrokenText: what a node or a client says of itself is cut at a rune
// and made valid, so that no decoder refuses it.
func TestLongAndBrokenText(t *testing.T) {
	for _, s := range []string{
		strings.Repeat("x", 5000), strings.Repeat("\u00e4", 5000), "x" + strings.Repeat("\u65e5", 5000),
		"ab\xff\xfecd", strings.Repeat("x\xff", 5000),
	} {
		if got := relay(t, Error{Code: CodeBusy, Message: s}).Message; len(got) > MaxMessage || len(got) < min(len(s)-1, MaxMessage-4) || !utf8.ValidString(got) {
			t.Errorf("message of %d bytes arrives with %d", len(s), len(got))
		}
		var h Hello
		if err := h.Decode((&Hello{MinVersion: 1, MaxVersion: 1, Name: s}).Append(nil)); err != nil || len(h.Name) > MaxName {
			t.Errorf("name of %d bytes: %d, %v", len(s), len(h.Name), err)
		}
	}
}

func TestNames(t *testing.T) {
	for _, c := range []struct{ got, want string }{
		{Kind(0).String(), "Kind(0x00)"},
		{KindTruncate.String(), "TRUNCATE"},
		{CodeOK.String(), "ok"},
		{CodeInternal.String(), "internal"},
		{UnknownNone.String(), "none"},
		{UnknownTorn.String(), "torn"},
		{UnknownCorrupt.String(), "corrupt"},
		{UnknownReason(9).String(), "UnknownReason(9)"},
	} {
		if c.got != c.want {
			t.Errorf("%q, want %q", c.got, c.want)
		}
	}
	if KindPing.FromNode() || !KindBye.FromNode() {
		t.Error("PING comes from the client and BYE from the node")
	}
}
