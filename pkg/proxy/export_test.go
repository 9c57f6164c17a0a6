package proxy

// EnsureCA makes the forward proxy's CA in dir if there is none, and returns the
// path of its certificate.
func EnsureCA(dir string) (certFile string, err error) {
	ca, err := openAuthority(dir)
	if err != nil {
		return "", err
	}
	return ca.certFile, nil
}

// ForgetTags ends the time in which tags are believed.
func (p *Proxy) ForgetTags() {
	p.tags.drop(func(tagKey) bool { return true })
	p.heads.drop(func(tagKey) bool { return true })
}

// Tricks are manifests that name another's digest, which stands in for AnotherDigest.
func Tricks() []string { return tricks() }

// AnotherDigest and OwnDigest are those that Tricks name.
const (
	AnotherDigest = anotherDigest
	OwnDigest     = ownDigest
)

// MaxClientConns is maxClientConns.
const MaxClientConns = maxClientConns
