package origin

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"time"
)

var (
	// ErrForbiddenAddress: the guard refused to dial an address. The error is a
	// *ForbiddenAddressError.
	ErrForbiddenAddress = errors.New("address is not allowed")
	// ErrUnlistedHost: Config.OnlyListed is set and the host is not listed.
	ErrUnlistedHost = errors.New("host is not configured")
	// ErrRedirect: a redirect that is not followed: a loop, too many of them, one
	// to another scheme.
	ErrRedirect = errors.New("redirect is not followed")
	// ErrChanged: a file without a digest is not the one that was asked for
	// any more: its validator (ETag, Last-Modified) differs.
	ErrChanged = errors.New("file has changed at the origin")
	// ErrSize: the origin's content is longer or shorter than the size that was
	// given to Read.
	ErrSize = errors.New("size differs at the origin")
	// ErrNoRange: the origin sends whole files only, and what is wanted starts
	// further in than Config.MaxSkip.
	ErrNoRange = errors.New("origin does not serve ranges")
	// ErrProtocol: the origin's answer breaks HTTP or the distribution spec.
	ErrProtocol = errors.New("answer of the origin is not understood")
	// ErrStalled: no byte came for Config.StallTimeout.
	ErrStalled = errors.New("origin stopped sending")
	// ErrTokenRealm: the token realm that the registry names gave no token. It is
	// wrapped where the realm was out of reach or failed; where it refused, the
	// registry's own 401 is what callers see.
	ErrTokenRealm = errors.New("token realm gave no token")
	// ErrCredentials: the node's own credentials, or their helper, cannot be used.
	ErrCredentials = errors.New("own credentials cannot be used")
)

// ForbiddenAddressError says which address the guard refused and why. It wraps
// ErrForbiddenAddress.
type ForbiddenAddressError struct {
	// Target is the host:port that was to be dialled, as the URL spelled it.
	Target string
	// Addr is the address it led to.
	Addr netip.Addr
	// Why is the class of the address: "loopback", "link-local", ...
	Why string
}

func (e *ForbiddenAddressError) Error() string {
	what := "a " + e.Why + " address"
	if e.Why == classOwn {
		what = "an address of this machine"
	}
	return fmt.Sprintf("%s leads to %s, %s, which origins may not have; if it is meant, list the host under origin.hosts or the address under origin.allow",
		e.Target, e.Addr, what)
}

// Unwrap makes the error an ErrForbiddenAddress.
func (e *ForbiddenAddressError) Unwrap() error { return ErrForbiddenAddress }

// maxErrorBody bounds what is kept of the body of an error answer.
const maxErrorBody = 64 << 10

// StatusError is an answer of the origin that is not the content asked for. It
// keeps what a client of ours needs in order to act on it as if it had asked
// the origin itself.
type StatusError struct {
	// Code is the HTTP status.
	Code int
	// Header holds Content-Type, WWW-Authenticate, Retry-After,
	// Docker-Distribution-* and the rate limit headers of the answer, no other.
	Header http.Header
	// Body is the start of the body, at most 64 KiB.
	Body []byte
	// RetryAfter is how long the origin asks to wait; 0 when it does not say.
	RetryAfter time.Duration
	// Ref is what was asked for.
	Ref Ref
}

// Error says the status and, where the body is the distribution spec's error
// body, the first error in it.
func (e *StatusError) Error() string {
	s := fmt.Sprintf("origin answered %d %s for %s", e.Code, http.StatusText(e.Code), e.Ref)
	var body struct {
		Errors []struct{ Code, Message string }
	}
	if json.Unmarshal(e.Body, &body) == nil && len(body.Errors) > 0 {
		s += fmt.Sprintf(": %q", clipTo(400, body.Errors[0].Code+": "+body.Errors[0].Message))
	}
	if e.RetryAfter > 0 {
		s += fmt.Sprintf("; it asks to wait %s", e.RetryAfter)
	}
	return s
}

// SizeError says that the origin's content has another size than was given to Read. It
// wraps ErrSize.
type SizeError struct {
	// Size is the one that the origin told, in bytes, -1 where it told none; Expected the
	// one that was given.
	Size, Expected int64
}

// Error implements error.
func (e *SizeError) Error() string {
	if e.Size < 0 {
		return fmt.Sprintf("%v, or is %d: the origin tells none", ErrSize, e.Expected)
	}
	return fmt.Sprintf("%v: %d bytes instead of %d", ErrSize, e.Size, e.Expected)
}

// Unwrap makes the error an ErrSize.
func (e *SizeError) Unwrap() error { return ErrSize }

// about is err as the package returns it: it says what it is about, once.
func about(ref Ref, err error) error {
	if status := (*StatusError)(nil); errors.As(err, &status) {
		return err
	}
	return fmt.Errorf("origin: %s: %w", ref, err)
}

// keptHeader tells whether a StatusError keeps the header.
func keptHeader(key string) bool {
	switch key {
	case "Content-Type", "Www-Authenticate", "Retry-After", "Docker-Ratelimit-Source":
		return true
	}
	return strings.HasPrefix(key, "Docker-Distribution-") ||
		strings.HasPrefix(key, "Ratelimit-") || strings.HasPrefix(key, "X-Ratelimit-")
}
