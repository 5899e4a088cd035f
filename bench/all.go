package bench

import (
	"context"
	"errors"
	"io"
)

// AllCmd is "redoubt bench all".
func AllCmd(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	return errors.New("x")
}
