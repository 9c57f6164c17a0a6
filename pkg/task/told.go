package task

import (
	"net/http"
	"strings"

	"github.com/damselfly-p2p/damselfly/pkg/origin"
)

// The query of a URL may be a credential: a signature, a token. It leaves this node as
// one does: schedulers, their traces and other nodes are told the URL without it, and a
// seed that reads for a client here asks for it by Credential.

const (
	// withheld stands for a query in what others are told.
	withheld = "withheld"
	// urlHeader carries the whole URL among the headers of a credential. No client sets
	// it, and no origin sees it.
	urlHeader = "Damselfly-Url"
)

// told is ref as others are told it.
func told(ref origin.Ref) origin.Ref {
	if bare, _, has := strings.Cut(ref.URL, "?"); ref.Kind == origin.KindURL && has {
		ref.URL = bare + "?" + withheld
	}
	return ref
}

// opening is what opens c's origin: the client's headers and, where others are not told
// all of the URL, that.
func (c claim) opening() http.Header {
	header := c.header.Clone()
	header.Del(urlHeader)
	if told(c.ref) != c.ref {
		if header == nil {
			header = http.Header{}
		}
		header.Set(urlHeader, c.ref.URL)
	}
	return header
}

// whole is ref, which was told, and what to send there, by the headers of a credential
// for it. Only a URL that would be told as ref is taken.
func whole(ref origin.Ref, header http.Header) (origin.Ref, http.Header) {
	full := header.Get(urlHeader)
	if full == "" {
		return ref, header
	}
	header = header.Clone()
	header.Del(urlHeader)
	out := ref
	var err error
	if out.URL, err = origin.ParseURL(full); err != nil || told(out) != ref {
		return ref, header
	}
	return out, header
}
