# Completes twiddler in bash: verbs, options, and live names of processes and groups.
# bash takes words apart at : and =, which stand in the names of processes and in options. They are
# put together again for the program, and what is in front of the last of them is taken off again.
_twiddler() {
    local line=${COMP_LINE:0:COMP_POINT} words=() word i
    for ((i = 0; i <= COMP_CWORD; i++)); do
        word=${COMP_WORDS[i]}
        if [[ $i -eq 0 || $line == [[:blank:]]* || -z $line ]]; then
            line=${line#"${line%%[![:blank:]]*}"}
            words+=("")
        fi
        ((i == COMP_CWORD)) && word=$line
        words[${#words[@]} - 1]+=$word
        line=${line#"$word"}
    done
    local current=${words[${#words[@]} - 1]} prefix="" candidate
    case $current in
        [\'\"]*) # A quoted word is one to bash, too.
            current=${current:1}
            words[${#words[@]} - 1]=$current
            ;;
        *[:=]*) prefix=${current%"${current##*[:=]}"} ;;
    esac
    COMPREPLY=()
    while IFS= read -r candidate || [[ -n $candidate ]]; do
        [[ $candidate == "$current"* ]] && COMPREPLY+=("${candidate#"$prefix"}")
    done < <(
        _CLAP_IFS=$'\n' _CLAP_COMPLETE_INDEX=$((${#words[@]} - 1)) \
            _CLAP_COMPLETE_COMP_TYPE=$COMP_TYPE _CLAP_COMPLETE_SPACE=false \
            COMPLETE=bash twiddler -- "${words[@]}" 2>/dev/null
    )
    [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} != *[=/:] ]] && COMPREPLY[0]+=" "
}
complete -o nospace -o bashdefault -o nosort -F _twiddler twiddler 2>/dev/null ||
    complete -o nospace -o bashdefault -F _twiddler twiddler
