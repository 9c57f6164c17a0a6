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

// MaxClientConns is maxClientConns.
const MaxClientConns = maxClientConns
