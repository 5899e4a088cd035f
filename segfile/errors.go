package segfile

import (
	"context"
	"fmt"

	"github.com/redoubt-storage/redoubt"
)

// background is for pools whose slabs come back without anybody's help.
var background = context.Background()

func invalidf(format string, args ...any) error {
	return fmt.Errorf("segfile: "+format+": %w", append(args, redoubt.ErrInvalid)...)
}

func corruptf(format string, args ...any) error {
	return fmt.Errorf("segfile: "+format+": %w", append(args, redoubt.ErrCorrupt)...)
}

func segErr(seg *Segment, sentinel error, format string, args ...any) error {
	return fmt.Errorf("segfile: segment %v pg %d: "+format+": %w",
		append(append([]any{seg.ID, seg.PG}, args...), sentinel)...)
}
