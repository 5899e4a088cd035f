package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"unicode/utf8"

	"github.com/redoubt-storage/redoubt"
)

const (
	errorSize = 24
	// MaxMessage bounds the message of an ERROR, in bytes.
	MaxMessage = 1024
	// NoEntry in an ERROR says that it is about the request, not about one
	// entry of an APPEND.
	NoEntry = -1
)

// A Code is a kind of error on the wire. Codes that this version doesn't know
// survive.
type Code uint32

const (
	CodeOK           Code = 0
	CodeCorrupt      Code = 1
	CodeFenced       Code = 2
	CodeBusy         Code = 3
	CodeFull         Code = 4
	CodeNotFound     Code = 5
	CodeExists       Code = 6
	CodeBelowFloor   Code = 7
	CodeAboveSCL     Code = 8
	CodeInvalid      Code = 9
	CodeDeviceFailed Code = 10
	CodeClosed       Code = 11
	CodeForeign      Code = 12
	CodeInternal     Code = 13 // none of the kinds: a bug, or the machine
)

// codes is the table of codes and the root package's kinds of error. Of an error
// that matches several, the first here goes on the wire: what tells a client to
// stop comes before what tells it to try again.
var codes = [...]struct {
	code Code
	kind error
	name string
}{
	{CodeFenced, redoubt.ErrFenced, "fenced"},
	{CodeDeviceFailed, redoubt.ErrDeviceFailed, "device failed"},
	{CodeCorrupt, redoubt.ErrCorrupt, "corrupt"},
	{CodeForeign, redoubt.ErrForeign, "foreign"},
	{CodeInvalid, redoubt.ErrInvalid, "invalid"},
	{CodeNotFound, redoubt.ErrNotFound, "not found"},
	{CodeExists, redoubt.ErrExists, "exists"},
	{CodeBelowFloor, redoubt.ErrBelowFloor, "below floor"},
	{CodeAboveSCL, redoubt.ErrAboveSCL, "above SCL"},
	{CodeFull, redoubt.ErrFull, "full"},
	{CodeBusy, redoubt.ErrBusy, "busy"},
	{CodeClosed, redoubt.ErrClosed, "closed"},
}

// Kind returns the root package's error that the code stands for, or nil.
func (c Code) Kind() error {
	for i := range codes {
		if codes[i].code == c {
			return codes[i].kind
		}
	}
	return nil
}

func (c Code) String() string {
	switch c {
	case CodeOK:
		return "ok"
	case CodeInternal:
		return "internal"
	}
	for i := range codes {
		if codes[i].code == c {
			return codes[i].name
		}
	}
	return fmt.Sprintf("Code(%d)", uint32(c))
}

// CodeOf returns the code that an error goes by on the wire.
func CodeOf(err error) Code {
	if err == nil {
		return CodeOK
	}
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Code // unknown codes survive a relay too
	}
	for i := range codes {
		if errors.Is(err, codes[i].kind) {
			return codes[i].code
		}
	}
	return CodeInternal
}

// An Error is the body of an ERROR frame. As an error it matches the kind that
// its code stands for.
type Error struct {
	Code    Code
	Entry   int    // of the APPEND, from 0; or NoEntry
	A, B    uint64 // per code, see the package comment
	Message string
}

// A Detailer is an error that knows the two numbers of its code, such as the
// epoch that the segment holds.
type Detailer interface {
	error
	WireDetail() (a, b uint64)
}

// ErrorOf returns the error as it goes on the wire. The two numbers come from
// the first Detailer in its tree, or Error.
func ErrorOf(entry int, err error) Error {
	e := Error{Code: CodeOf(err), Entry: entry, Message: err.Error()}
	if d, ok := errors.AsType[Detailer](err); ok {
		e.A, e.B = d.WireDetail()
	}
	return e
}

// WireDetail returns A and B.
func (e *Error) WireDetail() (a, b uint64) { return e.A, e.B }

func (e *Error) Error() string {
	if e.Message == "" {
		return e.Code.String()
	}
	return e.Message
}

// Unwrap returns the kind that the code stands for, or nil.
func (e *Error) Unwrap() error { return e.Code.Kind() }

// Append appends the body of ERROR to dst, with the message cut at MaxMessage.
func (e *Error) Append(dst []byte) []byte {
	le := binary.LittleEndian
	dst = le.AppendUint32(dst, uint32(e.Code))
	dst = le.AppendUint32(dst, uint32(int32(e.Entry)))
	dst = le.AppendUint64(dst, e.A)
	dst = le.AppendUint64(dst, e.B)
	return append(dst, text(e.Message, MaxMessage)...)
}

// Decode reads the body of ERROR.
func (e *Error) Decode(b []byte) error {
	if len(b) < errorSize || len(b) > errorSize+MaxMessage {
		return invalid("ERROR of %d bytes", len(b))
	}
	le := binary.LittleEndian
	message, entry := b[errorSize:], int32(le.Uint32(b[4:]))
	if le.Uint32(b) == 0 || entry < NoEntry || !utf8.Valid(message) {
		return invalid("ERROR with code %d, entry %d, message %q", le.Uint32(b), entry, message)
	}
	*e = Error{
		Code:    Code(le.Uint32(b)),
		Entry:   int(entry),
		A:       le.Uint64(b[8:]),
		B:       le.Uint64(b[16:]),
		Message: string(message),
	}
	return nil
}
