#compdef peel
# zsh completion for peel: all words come from peel itself.

_peel() {
	local -a found
	found=(${(f)"$(${words[1]} complete "${(@)words[2,CURRENT]}" 2>/dev/null)"})
	if (( $#found )); then
		compadd -a found
	else
		_files
	fi
}

if [[ $funcstack[1] == _peel ]]; then
	_peel "$@"
else
	compdef _peel peel
fi
