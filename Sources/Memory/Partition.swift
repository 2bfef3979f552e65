extension RandomAccessCollection where Index == Int {
  /// The index of the first element of the second part, in a collection whose elements fall into
  /// those for which `isInSecondPart` is false and, behind them, those for which it is true;
  /// `endIndex` if there is no second part. Found by bisection.
  @inlinable public func partitioningIndex(where isInSecondPart: (Element) -> Bool) -> Int {
    var low = startIndex
    var high = endIndex
    while low < high {
      let middle = low + (high - low) / 2
      if isInSecondPart(self[middle]) { high = middle } else { low = middle + 1 }
    }
    return low
  }
}
