package powercut

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// negotiate goes through the handshake up to the transmission phase.
//
//	server   u64 "NBDMAGIC", u64 "IHAVEOPT", u16 handshake flags
//	client   u32 client flags; then options: u64 "IHAVEOPT", u32 option, u32 length, bytes
//	server   to each: u64 magic, u32 option, u32 kind of reply, u32 length, bytes
func (s *session) negotiate() error {
	var b [18]byte
	binary.BigEndian.PutUint64(b[0:], nbdMagic)
	binary.BigEndian.PutUint64(b[8:], optMagic)
	binary.BigEndian.PutUint16(b[16:], flagFixed|flagNoZeroes)
	s.out.Write(b[:])
	if err := s.out.Flush(); err != nil {
		return err
	}
	var client [4]byte
	if _, err := io.ReadFull(s.in, client[:]); err != nil {
		return err
	}
	noZeroes := binary.BigEndian.Uint32(client[:])&flagNoZeroes != 0
	for {
		done, err := s.option(noZeroes)
		if err != nil {
			return err
		}
		if err := s.out.Flush(); err != nil {
			return err
		}
		if done {
			return nil
		}
	}
}

// option answers one option, and reports whether the transmission phase begins.
func (s *session) option(noZeroes bool) (bool, error) {
	var head [16]byte
	if _, err := io.ReadFull(s.in, head[:]); err != nil {
		return false, err
	}
	if magic := binary.BigEndian.Uint64(head[0:]); magic != optMagic {
		return false, fmt.Errorf("option magic %#x", magic)
	}
	opt, n := binary.BigEndian.Uint32(head[8:]), binary.BigEndian.Uint32(head[12:])
	if n > maxOption {
		return false, fmt.Errorf("option %d of %d bytes, more than %d", opt, n, maxOption)
	}
	data := make([]byte, n)
	if _, err := io.ReadFull(s.in, data); err != nil {
		return false, err
	}
	switch opt {
	case optExportName:
		return true, s.exportName(noZeroes)
	case optAbort:
		s.optReply(opt, repAck, nil)
		return false, errors.Join(errDone, s.out.Flush())
	case optInfo, optGo:
		return s.info(opt, data), nil
	}
	s.optReply(opt, repUnsupported, nil)
	return false, nil
}

// exportName ends the handshake in the old way, with no room for refusal.
func (s *session) exportName(noZeroes bool) error {
	b := make([]byte, 10, 134)
	binary.BigEndian.PutUint64(b[0:], uint64(s.disk.Size()))
	binary.BigEndian.PutUint16(b[8:], s.flags)
	if !noZeroes {
		b = b[:134]
	}
	_, err := s.out.Write(b)
	return err
}

// info describes the export, whatever its name, and reports whether it was taken.
//
//	option   u32 length of the name, name, u16 number of requests, u16 requests
func (s *session) info(opt uint32, data []byte) bool {
	if len(data) < 6 || uint64(binary.BigEndian.Uint32(data)) > uint64(len(data)-6) {
		s.optReply(opt, repInvalid, nil)
		return false
	}
	export := binary.BigEndian.AppendUint16(nil, infoExport)
	export = binary.BigEndian.AppendUint64(export, uint64(s.disk.Size()))
	export = binary.BigEndian.AppendUint16(export, s.flags)
	s.optReply(opt, repInfo, export)

	sizes := binary.BigEndian.AppendUint16(nil, infoBlockSize)
	for _, size := range []uint32{SectorSize, 4096, maxTransfer} { // smallest, preferred, largest
		sizes = binary.BigEndian.AppendUint32(sizes, size)
	}
	s.optReply(opt, repInfo, sizes)
	s.optReply(opt, repAck, nil)
	return opt == optGo
}

func (s *session) optReply(opt, kind uint32, data []byte) {
	var b [20]byte
	binary.BigEndian.PutUint64(b[0:], optReplyMagic)
	binary.BigEndian.PutUint32(b[8:], opt)
	binary.BigEndian.PutUint32(b[12:], kind)
	binary.BigEndian.PutUint32(b[16:], uint32(len(data)))
	s.out.Write(b[:])
	s.out.Write(data)
}
