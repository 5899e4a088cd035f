package wire

import (
	"fmt"

	"github.com/redoubt-storage/redoubt"
)

// A Kind says what a frame is. Bit 7 is set in those that the node sends.
type Kind uint8

const (
	KindHello    Kind = 0x01
	KindCreate   Kind = 0x02
	KindDelete   Kind = 0x03
	KindAttach   Kind = 0x04
	KindDescribe Kind = 0x05
	KindList     Kind = 0x06
	KindAppend   Kind = 0x07
	KindRead     Kind = 0x08
	KindFloor    Kind = 0x09
	KindFence    Kind = 0x0a
	KindTruncate Kind = 0x0b
	KindTail     Kind = 0x0c
	KindPing     Kind = 0x0d

	KindWelcome     Kind = 0x81
	KindOK          Kind = 0x82
	KindError       Kind = 0x83
	KindAttached    Kind = 0x84
	KindDescription Kind = 0x85
	KindListed      Kind = 0x86
	KindAck         Kind = 0x87
	KindPages       Kind = 0x88
	KindTailed      Kind = 0x89
	KindBye         Kind = 0x8a
)

// FromNode reports whether it is the node that sends frames of this kind.
func (k Kind) FromNode() bool { return k&0x80 != 0 }

func (k Kind) String() string {
	if s := k.spec(); s.name != "" {
		return s.name
	}
	return fmt.Sprintf("Kind(%#02x)", uint8(k))
}

// A spec is one row of the table of kinds in the package comment.
type spec struct {
	name string
	min  int // bytes of the body
	max  int
	aux  int // highest aux; 0: it is zero
}

// spec returns the kind's row, whose name is empty if there is no such kind.
func (k Kind) spec() spec {
	switch k {
	case KindHello:
		return spec{name: "HELLO", min: helloSize, max: helloSize + MaxName}
	case KindCreate:
		return spec{name: "CREATE", min: createSize, max: createSize}
	case KindDelete:
		return spec{name: "DELETE", min: deleteSize, max: deleteSize}
	case KindAttach:
		return spec{name: "ATTACH", min: attachSize, max: attachSize}
	case KindDescribe:
		return spec{name: "DESCRIBE", min: describeSize, max: describeSize}
	case KindList:
		return spec{name: "LIST", min: listSize, max: listSize}
	case KindAppend:
		return spec{name: "APPEND", min: minEntry, max: MaxFrameLimit, aux: MaxFrameLimit / minEntry}
	case KindRead:
		return spec{name: "READ", min: readSize + 4, max: readSize + 4*MaxPages}
	case KindFloor:
		return spec{name: "FLOOR", min: floorSize, max: floorSize}
	case KindFence:
		return spec{name: "FENCE", min: fenceSize, max: fenceSize}
	case KindTruncate:
		return spec{name: "TRUNCATE", min: truncateSize, max: truncateSize}
	case KindTail:
		return spec{name: "TAIL", min: tailSize, max: tailSize}
	case KindPing:
		return spec{name: "PING"}
	}
	return k.answer()
}

// answer is spec for what the node sends.
func (k Kind) answer() spec {
	switch k {
	case KindWelcome:
		return spec{name: "WELCOME", min: welcomeSize, max: welcomeSize + MaxName}
	case KindOK:
		return spec{name: "OK"}
	case KindError:
		return spec{name: "ERROR", min: errorSize, max: errorSize + MaxMessage}
	case KindAttached:
		return spec{name: "ATTACHED", min: attachedSize, max: attachedSize}
	case KindDescription:
		return spec{name: "DESCRIPTION", min: descriptionSize, max: descriptionSize}
	case KindListed:
		return spec{name: "LISTED", min: listedSize, max: MaxFrameLimit}
	case KindAck:
		return spec{name: "ACK", min: AckSize, max: MaxFrameLimit, aux: MaxFrameLimit / AckSize}
	case KindPages:
		return spec{name: "PAGES", min: PageDescSize, max: MaxPages * (PageDescSize + redoubt.PageSize), aux: MaxPages}
	case KindTailed:
		return spec{name: "TAILED", min: tailedSize, max: MaxFrameLimit}
	case KindBye:
		return spec{name: "BYE"}
	}
	return spec{}
}
