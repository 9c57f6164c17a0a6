package fetch

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"syscall"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
	"github.com/damselfly-p2p/damselfly/pkg/origin"
)

var (
	// ErrUnusable: this source cannot give the content now although another may.
	ErrUnusable = errors.New("source cannot be used")
	// ErrTooLarge: a manifest is larger than may be.
	ErrTooLarge = errors.New("manifest is too large")
)

// IntegrityError says that a source gave other bytes than were asked for. It
// wraps blob.ErrMismatch.
type IntegrityError struct {
	Ref       origin.Ref
	Source    string // who sent them
	Want, Got string // digests or sizes
	Err       error  // the cause where there is one
}

func (e *IntegrityError) Error() string {
	return fmt.Sprintf("the bytes of %s from the %s are wrong: want %s, got %s", e.Ref, e.Source, e.Want, e.Got)
}

// Unwrap makes the error a blob.ErrMismatch.
func (e *IntegrityError) Unwrap() []error { return []error{blob.ErrMismatch, e.Err} }

// SinkError says that the bytes could not be written where they should go.
type SinkError struct{ Err error }

func (e *SinkError) Error() string { return e.Err.Error() }

// Unwrap is the sink's own error.
func (e *SinkError) Unwrap() error { return e.Err }

// SourceError says that a source could not be read to the end, for whatever
// reason.
type SourceError struct {
	Source string
	Err    error
}

func (e *SourceError) Error() string { return e.Err.Error() }

// Unwrap is the source's own error.
func (e *SourceError) Unwrap() error { return e.Err }

// authoritative tells whether err is an answer that the daemon passes on from
// the origin and that the origin would only repeat.
func authoritative(err error) bool {
	var status *origin.StatusError
	if !errors.As(err, &status) {
		return false
	}
	return status.Code == http.StatusUnauthorized || status.Code == http.StatusNotFound
}

// temporary tells whether the same request, which brought nothing, may succeed
// a little later. A refused connection or a name that does not resolve is not
// waited for: that is what a typing error looks like.
func temporary(err error) bool {
	var status *origin.StatusError
	if errors.As(err, &status) {
		return status.Code >= 500 && status.Code != http.StatusNotImplemented ||
			status.Code == http.StatusTooManyRequests || status.Code == http.StatusRequestTimeout
	}
	return errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) ||
		errors.Is(err, origin.ErrStalled) || errors.Is(err, origin.ErrChanged) ||
		errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

// finalError marks an error after which nothing is tried again: its source has
// done so already.
type finalError struct{ err error }

func (e *finalError) Error() string { return e.err.Error() }
func (e *finalError) Unwrap() error { return e.err }

func isFinal(err error) bool {
	var final *finalError
	return errors.As(err, &final)
}
