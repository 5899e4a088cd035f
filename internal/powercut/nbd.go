package powercut

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"
)

// An Export serves one Disk over NBD, with the fixed newstyle handshake and
// simple replies, to one client at a time. It knows READ, WRITE, FLUSH, TRIM
// (which it answers and ignores) and DISC.
//
//	request   u32 magic, u16 flags, u16 kind, u64 cookie, u64 offset, u32 length; then a write's bytes
//	reply     u32 magic, u32 error, u64 cookie; then a read's bytes          (all big-endian)
type Export struct {
	Disk *Disk

	// FUA tells the client that it may ask for single writes to be durable.
	// Without it a client that wants that has to flush.
	FUA bool

	// Linger is how long an answer to a write waits for further requests. What
	// comes in meanwhile was submitted before the write was known to be complete,
	// so that a flush among it does not cover the write. Default 200 us, several
	// times what a client needs to send two requests in a row.
	Linger time.Duration
}

// Limits of what a client may send.
const (
	maxOption   = 4096     // bytes of one option
	maxTransfer = 32 << 20 // bytes of one read or write
	maxGroup    = 64       // writes that wait for their answer
)

// The protocol's numbers, by the names of its specification without the prefix.
const (
	nbdMagic       = 0x4e42444d41474943 // "NBDMAGIC"
	optMagic       = 0x49484156454f5054 // "IHAVEOPT"
	optReplyMagic  = 0x0003e889045565a9
	requestMagic   = 0x25609513
	replyMagic     = 0x67446698
	flagFixed      = 1 << 0
	flagNoZeroes   = 1 << 1
	optExportName  = 1
	optAbort       = 2
	optInfo        = 6
	optGo          = 7
	repAck         = 1
	repInfo        = 3
	repUnsupported = 1<<31 + 1
	repInvalid     = 1<<31 + 3
	infoExport     = 0
	infoBlockSize  = 3
	hasFlags       = 1 << 0
	sendFlush      = 1 << 2
	sendFUA        = 1 << 3
	sendTrim       = 1 << 5
	cmdRead        = 0
	cmdWrite       = 1
	cmdDisconnect  = 2
	cmdFlush       = 3
	cmdTrim        = 4
	cmdFlagFUA     = 1 << 0
	errnoInvalid   = 22
)

// errDone ends a session that the client has closed in order.
var errDone = errors.New("powercut: the client has disconnected")

// Serve handles one client until it goes away; nil says that it took its leave,
// or that the power went. The caller closes the connection, also to end a session
// whose power is off: it gives no answer, but it stays.
func (e *Export) Serve(conn net.Conn) error {
	s := &session{
		disk: e.Disk, flags: hasFlags | sendFlush | sendTrim, linger: e.Linger,
		conn: conn, in: bufio.NewReaderSize(conn, 1<<20), out: bufio.NewWriterSize(conn, 1<<20),
	}
	if e.FUA {
		s.flags |= sendFUA
	}
	if s.linger == 0 {
		s.linger = 200 * time.Microsecond
	}
	err := s.negotiate()
	for err == nil {
		err = s.request()
	}
	switch {
	case errors.Is(err, errDone):
		return nil
	case errors.Is(err, ErrPowerOff):
		_, err = io.Copy(io.Discard, conn) // a dead drive: nothing comes back
		if errors.Is(err, net.ErrClosed) {
			err = nil
		}
		return err
	}
	return fmt.Errorf("powercut: nbd session: %w", err)
}

// A session is one client's connection; one goroutine owns it.
type session struct {
	disk   *Disk
	flags  uint16
	linger time.Duration
	conn   net.Conn
	in     *bufio.Reader
	out    *bufio.Writer

	group []*Write // received, and answered once the group is sent
}

// A request is one as it came off the wire, without a write's bytes.
type request struct {
	flags, kind uint16
	cookie      uint64
	off         uint64
	length      uint32
}

func readRequest(r io.Reader) (request, error) {
	var b [28]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return request{}, err
	}
	if magic := binary.BigEndian.Uint32(b[0:]); magic != requestMagic {
		return request{}, fmt.Errorf("request magic %#x", magic)
	}
	q := request{
		flags:  binary.BigEndian.Uint16(b[4:]),
		kind:   binary.BigEndian.Uint16(b[6:]),
		cookie: binary.BigEndian.Uint64(b[8:]),
		off:    binary.BigEndian.Uint64(b[16:]),
		length: binary.BigEndian.Uint32(b[24:]),
	}
	if (q.kind == cmdRead || q.kind == cmdWrite) && q.length > maxTransfer {
		return q, fmt.Errorf("request for %d bytes, more than %d", q.length, maxTransfer)
	}
	return q, nil
}

// request handles one request, and sends what is answered when no other follows
// closely.
func (s *session) request() error {
	q, err := readRequest(s.in)
	if err != nil {
		return err
	}
	if err := s.handle(q); err != nil {
		return err
	}
	if len(s.group) < maxGroup && s.moreFollows() {
		return nil
	}
	s.disk.Answered(s.group...)
	s.group = s.group[:0]
	return s.out.Flush()
}

func (s *session) handle(q request) error {
	switch q.kind {
	case cmdRead:
		return s.read(q)
	case cmdWrite:
		return s.write(q)
	case cmdFlush:
		return s.reply(q, s.disk.Flush(), nil)
	case cmdTrim:
		return s.reply(q, nil, nil)
	case cmdDisconnect:
		return errDone
	}
	return s.reply(q, fmt.Errorf("request kind %d", q.kind), nil)
}

func (s *session) read(q request) error {
	p := make([]byte, q.length)
	err := errRange
	if q.off < 1<<62 {
		err = s.disk.Read(p, int64(q.off))
	}
	return s.reply(q, err, p)
}

func (s *session) write(q request) error {
	p := make([]byte, q.length)
	if _, err := io.ReadFull(s.in, p); err != nil {
		return err
	}
	if q.off >= 1<<62 {
		return s.reply(q, errRange, nil)
	}
	w, err := s.disk.Write(p, int64(q.off), q.flags&cmdFlagFUA != 0)
	if err == nil {
		s.group = append(s.group, w)
	}
	return s.reply(q, err, nil)
}

// reply queues an answer, unless there is no power to send it with.
func (s *session) reply(q request, err error, data []byte) error {
	if errors.Is(err, ErrPowerOff) {
		return err
	}
	var b [16]byte
	binary.BigEndian.PutUint32(b[0:], replyMagic)
	if err != nil {
		binary.BigEndian.PutUint32(b[4:], errnoInvalid)
		data = nil
	}
	binary.BigEndian.PutUint64(b[8:], q.cookie)
	s.out.Write(b[:])
	_, err = s.out.Write(data) // a Writer's first error sticks
	return err
}

// moreFollows tells whether there is another request to take before answering.
func (s *session) moreFollows() bool {
	if s.in.Buffered() > 0 || len(s.group) == 0 {
		return s.in.Buffered() > 0
	}
	if err := s.conn.SetReadDeadline(time.Now().Add(s.linger)); err != nil {
		return false
	}
	_, err := s.in.Peek(1)
	s.conn.SetReadDeadline(time.Time{})
	return err == nil || !errors.Is(err, os.ErrDeadlineExceeded)
}
